// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Weights and activations of no meaning, to multiply.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"

namespace nibble::bench {

// "bf16", "w4a8-folded" ...: a format, its storage and its scale form.
struct WeightKind {
  std::string_view name;
  kernels::GemmDesc desc;  // n and k are 0
};
const std::vector<WeightKind>& WeightKinds();
// Null for an unknown name.
const WeightKind* FindWeightKind(std::string_view name);
// "f32, bf16, ..."
std::string WeightKindNames();

absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> PackRandomWeight(
    const kernels::GemmDesc& desc, Isa isa, ThreadPool* pool);

// Rows of both forms.
class GemmActivations {
 public:
  GemmActivations(int64_t m, int64_t n, int64_t k, ThreadPool* pool);

  kernels::GemmArgs args();

 private:
  int64_t m_;
  int64_t n_;
  int64_t k_;
  std::vector<float> a_;    // [m, k]
  std::vector<int8_t> a8_;  // [m, k]
  std::vector<float> scales_;
  std::vector<int32_t> sums_;
  std::vector<float> d_;  // [m, n]
};

}  // namespace nibble::bench
