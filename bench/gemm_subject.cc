// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/gemm_subject.h"

#include "fmt/ranges.h"

#include "bench/random_weight.h"

namespace nibble::bench {

using kernels::GemmDesc;
using kernels::ScaleForm;
using kernels::WeightFormat;

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
  return RandomWeight(desc, 1).Pack(kernels::CpuWeightPacker(isa), pool);
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
