// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The codecs of compressed collectives alone, every instruction set of the host: values a second,
// bytes against the machine's memory, and what two steps of coding keep of a sum.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/codec/codec.h"

namespace nibble::bench {

struct CodecBenchOptions {
  std::vector<int64_t> bits = {32, 16, 8, 6, 5, 4, 3, 2};
  std::vector<int64_t> group_sizes = {128};  // 32, 64, 128
  // Of each width: plain, log2, spikes, hadamard.
  std::vector<std::string> variants = {"plain"};
  // Values coded at a time. Few stay in the caches, as they do in a small message; the default is
  // past them.
  std::vector<int64_t> rows = {4096};
  int64_t row_size = 4096;
  int64_t ranks = 4;      // whose codes a reduction sums
  double seconds = 0.05;  // of each figure, and at least 3 runs

  void Validate(std::vector<std::string>* violations) const;
};
// Every width, group size and variant; bf16 and float32 have one.
std::vector<comm::CodecDesc> CodecsOf(const CodecBenchOptions& options);

// Instruction sets up to `isa`.
absl::StatusOr<nlohmann::ordered_json> RunCodecBench(const CodecBenchOptions& options, Isa isa,
                                                     ThreadPool* pool, std::FILE* table);

}  // namespace nibble::bench
