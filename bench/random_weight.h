// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Weights and activations of no meaning, but of the spread that real ones have: power, and so
// clocks, depend on how many bits change.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/weight_packer.h"

namespace nibble::bench {

void FillRandomBytes(std::span<uint8_t> bytes, uint32_t seed);
// Of both signs, 2^-9 to 2^-5: sums of thousands of products stay small.
void FillRandomBf16(std::span<uint16_t> values, uint32_t seed);

// A matrix on the host, to be packed as often as copies of it are wanted.
class RandomWeight {
 public:
  // Format, form and sizes of `desc`. Group scales fold, so that every form takes them.
  RandomWeight(const kernels::GemmDesc& desc, uint32_t seed);

  absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> Pack(const kernels::WeightPacker& packer,
                                                              ThreadPool* pool) const;

 private:
  kernels::GemmDesc desc_;
  std::variant<std::vector<uint16_t>, kernels::Int4Weight, kernels::Int8Weight> values_;
};

}  // namespace nibble::bench
