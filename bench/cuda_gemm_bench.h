// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// `nibble bench gemm --device cuda`: our kernels on a device against cuBLASLt and the device's own
// limits. Options and shapes are plain; the measurement is in bench/cuda, in builds with CUDA.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "base/thread_pool.h"

namespace nibble::bench {

struct CudaGemmShape {
  std::string name;
  int64_t n = 0;
  int64_t k = 0;
};
// The linear layers of Llama-3-8B and 70B. An expert of Mixtral 8x7B has the gate_up and down of
// the former.
const std::vector<CudaGemmShape>& CudaGemmShapes();
// A name of CudaGemmShapes(), or NxK: "6144x4096". INVALID_ARGUMENT names the shapes there are.
absl::StatusOr<CudaGemmShape> FindCudaGemmShape(std::string_view name);

struct CudaGemmBenchOptions {
  std::vector<std::string> shapes = {"8b-qkv",  "8b-o",        "8b-gate-up",
                                     "8b-down", "70b-gate-up", "70b-down"};
  std::vector<int64_t> m = {1, 8, 16, 32, 64, 128, 256, 512};
  std::string filter;     // of the kernel's name: w4a8-folded, w4a8-integer, ...
  double seconds = 0.02;  // of each figure
  // Of the figures: launches of a graph, calls in it (at least one for each copy of a weight), and
  // what copies take together (0: three times the second-level cache).
  int min_runs = 5;
  int calls = 20;
  int64_t rotated_bytes = 0;
  int peak_rounds = 2000;  // of the loop that measures what multiplying is limited by

  void Validate(std::vector<std::string>* violations) const;
};

// Weights rotate through copies beyond three times the second-level cache; the quantization of
// activations counts. UNAVAILABLE where there is no device. Builds without CUDA: INVALID_ARGUMENT.
absl::StatusOr<nlohmann::ordered_json> RunCudaGemmBench(const CudaGemmBenchOptions& options,
                                                        ThreadPool* pool, std::FILE* table);

}  // namespace nibble::bench
