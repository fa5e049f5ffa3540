// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The ring all-reduce in bf16, as other libraries do it, over nibble's own transports: what the
// compressed one is measured against.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/float16.h"
#include "base/status.h"
#include "comm/deadline.h"
#include "comm/transport.h"

namespace nibble::bench {

class RingAllReduce {
 public:
  explicit RingAllReduce(comm::Transport* transport) : transport_(transport) {}

  // data[i] = the sum over the ranks, rounded to bf16 after every addition. Reduce-scatter and
  // all-gather in N - 1 steps each; segments go on in pieces as they come, so that sending and
  // adding overlap.
  absl::Status Run(BFloat16* data, int64_t count, comm::Deadline deadline);

 private:
  struct Range {
    int64_t begin;
    int64_t end;
  };

  Range Segment(int64_t count, int idx) const;
  absl::Status Send(const BFloat16* data, const Range& piece, uint64_t tag);
  absl::Status Receive(BFloat16* data, const Range& piece, uint64_t tag,
                       std::vector<comm::Ticket>* tickets);
  // The first `count` that are under way.
  absl::Status WaitForSends(size_t count, comm::Deadline deadline);

  comm::Transport* const transport_;
  uint32_t operation_ = 0;
  AlignedBuffer<BFloat16> incoming_;
  std::vector<comm::Ticket> sends_;
};

}  // namespace nibble::bench
