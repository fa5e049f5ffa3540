// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The all-reduce over any transport, of values in any codec: with integer codes the two steps of
// Flash Communication (arXiv:2412.04964, Algorithm 1), with bf16 and float32 the plain direct
// exchange. comm/README.md draws it.
//
// Everything that a value's result depends on lies in its group of `group_size` neighbours in a
// row: every rank's contribution is coded, the owner's own too, pieces are summed in rank order,
// the sum is coded again and everybody, its owner too, decodes that. So all ranks get the same
// bits, one-shot and two-shot give the same bits, and a row's bits do not depend on the rows beside
// it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/all_reduce.h"
#include "comm/deadline.h"
#include "comm/flash/group_range.h"
#include "comm/transport.h"

namespace nibble::comm {

struct FlashArgs {
  float* data = nullptr;  // [num_rows, row_size]; in place
  RowGroups groups;
  GroupRange range;  // of the groups in `data`: what is summed, the rest is not touched
  CodecDesc codec;   // REQUIRES groups.group_size == codec.group_size
  Algorithm algorithm = Algorithm::kTwoShot;
  uint64_t tag = 0;  // its low 32 bits are free: no other message of these ranks has it
  Deadline deadline = Deadline::After({});
  ThreadPool* pool = nullptr;  // codes and sums; null: the calling thread does
};

// Owns the scratch memory of one rank. One thread.
class FlashAllReduce {
 public:
  explicit FlashAllReduce(Isa isa) : isa_(isa) {}

  // Sums over the ranks of `transport`. After an error messages may still be under way into `data`
  // and this object's memory: destroy the transport first.
  absl::Status Run(const FlashArgs& args, Transport* transport);

 private:
  AlignedBuffer<uint8_t> scratch_;
  Isa isa_;
};

}  // namespace nibble::comm
