// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// `nibble bench codec --device cuda`: every codec of comm/codec/cuda, encoding, decoding and
// reducing, against the device's reading, and what a message of one row costs. The measurement is
// in bench/cuda, in builds with CUDA.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "bench/codec_bench.h"
#include "bench/meter_options.h"

namespace nibble::bench {

struct CudaCodecBenchOptions {
  // `seconds` is not looked at.
  CodecBenchOptions codecs = {.group_sizes = {32, 64, 128},
                              .variants = {"plain", "log2", "spikes", "hadamard"},
                              .rows = {8192}};  // 64 MiB of bf16 with rows of 4096
  int calls = 20;                               // in a graph, at least one for each copy
  MeterOptions meter;
  std::string save;  // a file that has the document, anew after each row; empty: none

  void Validate(std::vector<std::string>* violations) const;
};

// What is aimed at: the share of the device's reading that each kernel reaches, and the time that
// encoding, reducing and decoding one row take together.
struct CudaCodecGoals {
  double share_of_read = 0.8;
  double fixed_us = 6.0;
};

// Values are bf16 and rotate through copies beyond three times the second-level cache, but for
// those of the one row. A codec that fails is a row with `error`; all of them failing is an error.
// UNAVAILABLE where there is no device. Builds without CUDA: INVALID_ARGUMENT.
absl::StatusOr<nlohmann::ordered_json> RunCudaCodecBench(const CudaCodecBenchOptions& options,
                                                         std::FILE* table);

}  // namespace nibble::bench
