// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/random_weight.h"

#include <algorithm>
#include <cstring>
#include <random>

namespace nibble::bench {
namespace {

using kernels::WeightFormat;

kernels::Int4Weight RandomInt4(const kernels::GemmDesc& desc, uint32_t seed) {
  kernels::Int4Weight weight;
  weight.n = desc.n;
  weight.k = desc.k;
  weight.group_size = desc.group_size;
  weight.codes.resize(static_cast<size_t>(desc.n * weight.row_bytes()));
  FillRandomBytes(weight.codes, seed);
  weight.scales.resize(static_cast<size_t>(desc.n * weight.num_groups()));
  std::mt19937 random(seed);
  for (float& scale : weight.scales) scale = static_cast<float>(1 + random() % 16) * 0x1p-10F;
  return weight;
}

kernels::Int8Weight RandomInt8(const kernels::GemmDesc& desc, uint32_t seed) {
  kernels::Int8Weight weight;
  weight.n = desc.n;
  weight.k = desc.k;
  weight.codes.resize(static_cast<size_t>(desc.n * desc.k));
  FillRandomBytes({reinterpret_cast<uint8_t*>(weight.codes.data()), weight.codes.size()}, seed);
  weight.scales.assign(static_cast<size_t>(desc.n), 0x1p-12F);
  return weight;
}

}  // namespace

void FillRandomBytes(std::span<uint8_t> bytes, uint32_t seed) {
  std::mt19937_64 random(seed);
  for (size_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
    const uint64_t value = random();
    std::memcpy(bytes.data() + i, &value, std::min(sizeof(value), bytes.size() - i));
  }
}

void FillRandomBf16(std::span<uint16_t> values, uint32_t seed) {
  FillRandomBytes({reinterpret_cast<uint8_t*>(values.data()), values.size_bytes()}, seed);
  for (uint16_t& bits : values) bits = static_cast<uint16_t>((bits & 0x81FFU) | 0x3B00U);
}

RandomWeight::RandomWeight(const kernels::GemmDesc& desc, uint32_t seed) : desc_(desc) {
  switch (desc.format) {
    case WeightFormat::kW4A8:
    case WeightFormat::kW4A16:
      values_ = RandomInt4(desc, seed);
      return;
    case WeightFormat::kW8A8:
      values_ = RandomInt8(desc, seed);
      return;
    case WeightFormat::kDense:
      break;
  }
  FillRandomBf16(values_.emplace<std::vector<uint16_t>>(static_cast<size_t>(desc.n * desc.k)),
                 seed);
}

absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> RandomWeight::Pack(
    const kernels::WeightPacker& packer, ThreadPool* pool) const {
  if (const auto* const dense = std::get_if<std::vector<uint16_t>>(&values_)) {
    return packer.PackDense(dense->data(), DType::kBf16, desc_.n, desc_.k, desc_.storage, pool);
  }
  if (const auto* const int8 = std::get_if<kernels::Int8Weight>(&values_)) {
    return packer.PackInt8(*int8, pool);
  }
  const auto& int4 = std::get<kernels::Int4Weight>(values_);
  if (desc_.format == WeightFormat::kW4A16) return packer.PackInt4Float(int4, pool);
  return packer.PackInt4(int4, desc_.scale_form, pool);
}

}  // namespace nibble::bench
