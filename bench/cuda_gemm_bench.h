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
  // A layer with experts, each n x k, of which a token goes to so many; 0: there are none.
  int64_t num_experts = 0;
  int64_t num_experts_per_tok = 0;
  // Rows of an expert are gathered from the tokens', as gate_up's; else they lie together already.
  bool gathers = false;

  bool HasExperts() const { return num_experts > 0; }
  // Of D in a step of `num_tokens`.
  int64_t NumRows(int64_t num_tokens) const {
    return HasExperts() ? num_tokens * num_experts_per_tok : num_tokens;
  }
};
// The linear layers of Llama-3-8B and 70B, and the experts of Mixtral 8x7B.
const std::vector<CudaGemmShape>& CudaGemmShapes();
// A name of CudaGemmShapes(), NxK: "6144x4096", or NxKxExT: E experts, of which a token goes to T.
// INVALID_ARGUMENT names the shapes there are.
absl::StatusOr<CudaGemmShape> FindCudaGemmShape(std::string_view name);

// All that may be measured of a shape; cuBLASLt's only where there is one.
const std::vector<std::string>& CudaGemmVariantNames();

struct CudaGemmBenchOptions {
  std::vector<std::string> shapes = {"8b-qkv",          "8b-o",        "8b-gate-up",  "8b-down",
                                     "70b-qkv",         "70b-o",       "70b-gate-up", "70b-down",
                                     "mixtral-gate-up", "mixtral-down"};
  // Tokens.
  std::vector<int64_t> m = {1, 8, 16, 32, 64, 128, 256, 512};
  std::string filter;     // a part of a name of CudaGemmVariantNames()
  double seconds = 0.02;  // of each figure
  // Of the figures: launches of a graph, calls in it (at least one for each copy of a weight), and
  // what copies take together (0: three times the second-level cache).
  int min_runs = 5;
  int calls = 20;
  int64_t rotated_bytes = 0;
  int peak_rounds = 2000;  // of the loop that measures what multiplying is limited by
  std::string save;        // a file that has the document, anew after each row; empty: none

  void Validate(std::vector<std::string>* violations) const;
};

// Weights rotate through copies beyond three times the second-level cache; the quantization of
// activations counts. UNAVAILABLE where there is no device. Builds without CUDA: INVALID_ARGUMENT.
absl::StatusOr<nlohmann::ordered_json> RunCudaGemmBench(const CudaGemmBenchOptions& options,
                                                        ThreadPool* pool, std::FILE* table);

}  // namespace nibble::bench
