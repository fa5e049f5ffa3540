// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// `nibble bench allreduce --device cuda`: sums between the devices of this host, every codec and
// size against bf16 and NCCL, and what is saved where the norm behind a sum is fused with it. The
// measurement is in bench/cuda, in builds with CUDA.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "bench/meter_options.h"

namespace nibble::bench {

struct CudaAllReduceBenchOptions {
  int64_t ranks = 0;               // one a device, from device 0; 0: all, 8 at most
  std::string transport = "auto";  // auto, p2p, nccl, host
  // Of messages as bf16.
  std::vector<int64_t> sizes = {4 << 10, 8 << 10, 32 << 10, 128 << 10, 512 << 10, 1 << 20,
                                2 << 20, 4 << 20, 8 << 20,  32 << 20,  64 << 20};
  int64_t row_size = 4096;  // values of a row, as a model's hidden size; a multiple of 8
  // Beside bf16 (and NCCL), which are always measured: int8 to int2, and what measuring chooses.
  std::vector<std::string> codecs = {"int8", "int6", "int5", "int4", "auto"};
  int64_t group_size = 128;
  bool log2_scales = false;
  bool spikes = false;
  bool rotation = true;
  int calls = 16;  // between two events; at most kMaxCalls
  MeterOptions meter;
  std::string save;  // a file that has the document, anew after each codec; empty: none
  // A device reads until the host has enqueued all calls, so that no call waits for the host.
  double max_hold_seconds = 0.05;
  // Of tests: so many ranks on device 0. What they take is no timing.
  int64_t ranks_on_one_device = 0;

  static constexpr int kMaxCalls = 16;
  void Validate(std::vector<std::string>* violations) const;
};

// Ranks are threads of this process. FAILED_PRECONDITION where there are fewer than two devices.
// Builds without CUDA: INVALID_ARGUMENT.
absl::StatusOr<nlohmann::ordered_json> RunCudaAllReduceBench(
    const CudaAllReduceBenchOptions& options, std::FILE* table);

}  // namespace nibble::bench
