// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// `nibble bench attention --device cuda`: nibble's kernels beside FlashInfer's, decode against the
// device's reading and prefill against its bf16 products. Options and shapes are plain; the
// measurement is in bench/cuda, in builds with CUDA.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "bench/meter_options.h"

namespace nibble::bench {

struct CudaAttentionShape {
  std::string name;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};
// The heads of Llama-3-8B and 70B.
const std::vector<CudaAttentionShape>& CudaAttentionShapes();
// A name of CudaAttentionShapes(), or HEADSxKV_HEADSxHEAD_DIM: "32x8x128". INVALID_ARGUMENT names
// the shapes there are, or the limits.
absl::StatusOr<CudaAttentionShape> FindCudaAttentionShape(std::string_view name);

struct CudaAttentionBenchOptions {
  std::vector<std::string> shapes = {"8b", "70b"};
  std::vector<std::string> dtypes = {"bfloat16", "int8"};  // of the cache
  std::vector<int64_t> sequences = {1, 16, 64, 128};       // decoding together, one new token each
  std::vector<int64_t> contexts = {1024, 8192};            // tokens in the cache of each of those
  std::vector<int64_t> prefills = {512, 2048, 8192};       // new tokens of one sequence from empty
  int64_t block_size = 16;
  bool scattered = false;  // blocks in random order
  // Cases of which one cache of keys and values would be larger are left out, and say so.
  int64_t max_cache_bytes = int64_t{8} << 30;
  int calls = 20;  // in a graph, at least one for each copy of the cache
  MeterOptions meter;
  std::string save;  // a file that has the document, anew after each row; empty: none

  void Validate(std::vector<std::string>* violations) const;
};

// Caches rotate through copies beyond three times the second-level cache. Without FlashInfer in the
// build its rows are missing, and `flashinfer` says why. A case that fails is a row with `error`;
// all of them failing is an error. UNAVAILABLE where there is no device.
// Builds without CUDA: INVALID_ARGUMENT.
absl::StatusOr<nlohmann::ordered_json> RunCudaAttentionBench(
    const CudaAttentionBenchOptions& options, std::FILE* table);

}  // namespace nibble::bench
