// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/gemm_subject.h"

#include <utility>

#include "fmt/ranges.h"

namespace nibble::bench {
namespace {

using kernels::GemmDesc;
using kernels::ScaleForm;
using kernels::WeightFormat;

// Bytes without a pattern that a compiler or a cache could use.
class ByteNoise {
 public:
  uint8_t Next() {
    state_ = state_ * 1664525U + 1013904223U;
    return static_cast<uint8_t>(state_ >> 24);
  }

 private:
  uint32_t state_ = 1;
};

kernels::Int4Weight RandomInt4(const GemmDesc& desc) {
  kernels::Int4Weight weight;
  weight.n = desc.n;
  weight.k = desc.k;
  weight.group_size = desc.group_size;
  weight.codes.resize(static_cast<size_t>(desc.n * weight.row_bytes()));
  ByteNoise noise;
  for (uint8_t& code : weight.codes) code = noise.Next();
  weight.scales.resize(static_cast<size_t>(desc.n * weight.num_groups()));
  for (size_t i = 0; i < weight.scales.size(); ++i) {
    weight.scales[i] = 0.001F * static_cast<float>(8 + i % 9);  // folds: 8..16 times 0.001
  }
  return weight;
}

kernels::Int8Weight RandomInt8(const GemmDesc& desc) {
  kernels::Int8Weight weight;
  weight.n = desc.n;
  weight.k = desc.k;
  weight.codes.resize(static_cast<size_t>(desc.n * desc.k));
  ByteNoise noise;
  for (int8_t& code : weight.codes) code = static_cast<int8_t>(noise.Next());
  weight.scales.assign(static_cast<size_t>(desc.n), 0.001F);
  return weight;
}

}  // namespace

const std::vector<WeightKind>& WeightKinds() {
  static const std::vector<WeightKind> kKinds = {
      {"f32", {.storage = DType::kF32}},
      {"bf16", {.storage = DType::kBf16}},
      {"f16", {.storage = DType::kF16}},
      {"w8a8", {.format = WeightFormat::kW8A8}},
      {"w4a8-folded", {.format = WeightFormat::kW4A8, .scale_form = ScaleForm::kFolded}},
      {"w4a8-integer", {.format = WeightFormat::kW4A8, .scale_form = ScaleForm::kInteger}},
      {"w4a8-float", {.format = WeightFormat::kW4A8, .scale_form = ScaleForm::kFloat}},
      {"w4a16", {.format = WeightFormat::kW4A16}},
  };
  return kKinds;
}

const WeightKind* FindWeightKind(std::string_view name) {
  for (const WeightKind& kind : WeightKinds()) {
    if (kind.name == name) return &kind;
  }
  return nullptr;
}

std::string WeightKindNames() {
  std::vector<std::string_view> names;
  for (const WeightKind& kind : WeightKinds()) names.push_back(kind.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> PackRandomWeight(const GemmDesc& desc,
                                                                        Isa isa, ThreadPool* pool) {
  switch (desc.format) {
    case WeightFormat::kW4A8:
      return kernels::PackInt4(RandomInt4(desc), desc.scale_form, isa, pool);
    case WeightFormat::kW8A8:
      return kernels::PackInt8(RandomInt8(desc), isa, pool);
    case WeightFormat::kW4A16:
      return kernels::PackInt4Float(RandomInt4(desc), isa, pool);
    case WeightFormat::kDense:
      break;
  }
  std::vector<uint16_t> weights(static_cast<size_t>(desc.n * desc.k));
  ByteNoise noise;
  for (uint16_t& weight : weights) {  // bfloat16 near 1: no denormals, nothing infinite
    weight = static_cast<uint16_t>(0x3f00 | (noise.Next() & 0x7f));
  }
  return kernels::PackDense(weights.data(), DType::kBf16, desc.n, desc.k, desc.storage, isa, pool);
}

GemmActivations::GemmActivations(int64_t m, int64_t n, int64_t k, ThreadPool* pool)
    : m_(m),
      n_(n),
      k_(k),
      a_(static_cast<size_t>(m * k)),
      a8_(a_.size()),
      scales_(static_cast<size_t>(m)),
      sums_(static_cast<size_t>(m)),
      d_(static_cast<size_t>(m * n)) {
  for (size_t i = 0; i < a_.size(); ++i) a_[i] = static_cast<float>(i % 17) * 0.1F - 0.8F;
  kernels::QuantizeRows(a_.data(), k, m, k, args().a8, Isa::kRef, pool);
}

kernels::GemmArgs GemmActivations::args() {
  return {.m = m_,
          .a = a_.data(),
          .a_stride = k_,
          .a8 = {a8_.data(), scales_.data(), sums_.data(), k_},
          .d = d_.data(),
          .d_stride = n_};
}

}  // namespace nibble::bench
