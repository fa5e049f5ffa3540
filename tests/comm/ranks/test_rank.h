// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the rank processes of these tests (test_rank.cc) do when they are told.
#pragma once

#include <cstdint>

namespace nibble::comm {

enum class TestMessage : uint32_t {
  kEcho = 1,         // the same back
  kExit,             // ends with the status that the payload says
  kStopReading,      // never reads again, does not end
  kWriteGarbage,     // bytes that are no frame
  kWriteHugeHeader,  // a frame that claims more than a frame may have
  kDescriptors,      // answers with the number of open descriptors
  kSignals,          // answers with blocked and ignored signals, as /proc/self/status has them
  kCloseChannel,     // and lives on
  kPid,              // answers with its process id
};

}  // namespace nibble::comm
