// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// All ranks of an all-reduce on one device: one cooperative launch, blockIdx.y is the rank, with
// the device functions that the product's kernels have. Never timed.
#pragma once

#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "comm/all_reduce.h"

namespace nibble::comm {

// One all-reduce: [num_ranks][num_rows * row_size] in, and out.
struct OneDeviceMessage {
  CodecDesc codec;
  DType dtype = DType::kF32;
  int64_t num_rows = 0;
  int64_t row_size = 0;
  Algorithm algorithm = Algorithm::kTwoShot;
  std::vector<std::vector<float>> values;
};

struct OneDeviceOptions {
  int num_ranks = 2;
  int max_blocks = 2;
  int num_threads = 64;  // of a block
  int64_t region_bytes = int64_t{1} << 20;
  uint32_t first_epoch = 1;
  uint32_t flags_behind = 1;  // operations since the flags were written
  uint32_t num_buffers = 2;
  uint32_t stall_seed = 0;  // not 0: ranks pause here and there
  int silent_rank = -1;     // does not come
  int aborted_rank = -1;    // its host has given up
  int64_t timeout_clocks = int64_t{1} << 40;
};

// Runs the messages one after the other, each in as many parts as its plan says, with nothing
// between a rank's operations but the rank's own order: others may be ahead or behind. Messages of
// one call have one codec width and algorithm. `faults` [num_ranks] of P2pFault, may be null.
absl::Status RunOnOneDevice(const OneDeviceOptions& options,
                            std::vector<OneDeviceMessage>* messages, std::vector<uint32_t>* faults);

}  // namespace nibble::comm
