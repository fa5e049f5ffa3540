// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that are threads of one process: a message is copied from the sender's buffer to the
// receiver's once both have named it. Plain and slow (one mutex), and strict: nothing is buffered,
// so a collective that touches a buffer too early, or that needs a Send to end before its Receive
// is posted, is found out.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/transport.h"

namespace nibble::testing {

struct MemoryTransportOptions {
  // Not 0: messages are copied later than they could be, in a random order over different pairs and
  // tags. For tests.
  uint32_t disorder_seed = 0;
};

// [size], by rank. A transport that is destroyed is a peer that is gone.
std::vector<std::unique_ptr<comm::Transport>> MakeMemoryTransports(
    int size, const MemoryTransportOptions& options = {});

}  // namespace nibble::testing
