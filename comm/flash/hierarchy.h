// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The all-reduce of several ranks on several hosts: the ranks of a host sum stripes in float32
// among themselves, ranks of equal index exchange their stripe's sums between the hosts in a codec,
// and hand the result to the other ranks of their host. Between hosts a value travels once for a
// host, not once for a rank. comm/README.md draws it.
//
// Sums are taken in the order of ranks inside a host and then of hosts, and all that a value's
// result depends on lies in its group, as in flash.h.
#pragma once

#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "comm/flash/flash.h"
#include "comm/transport.h"

namespace nibble::comm {

struct HierarchyLinks {
  Transport* host = nullptr;    // of this host's ranks; null when there is one
  Transport* across = nullptr;  // of the ranks with this one's index on their hosts, in the hosts'
                                // order; null when this rank owns no stripe
  int num_stripes = 1;          // ranks of the host with the fewest
};

class HierarchicalAllReduce {
 public:
  explicit HierarchicalAllReduce(Isa isa) : flash_(isa) {}

  // As FlashAllReduce::Run, which it is when no host has more than one rank.
  absl::Status Run(const FlashArgs& args, const HierarchyLinks& links);

 private:
  absl::Status ReduceOnHost(const FlashArgs& args, const HierarchyLinks& links);
  absl::Status GatherOnHost(const FlashArgs& args, const HierarchyLinks& links);

  FlashAllReduce flash_;
  AlignedBuffer<float> pieces_;
};

}  // namespace nibble::comm
