// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a driver (RankGroup) and a rank (RankServer) say to each other. Payloads are flat and
// checked when read (rank_protocol.cc); the hub between them does not look inside.
//
//   rank -> driver                      driver -> rank
//   kLoaded {what the model needs}
//                                       kAllocate {blocks, limits}       once per process
//   kAllocated
//                                       kPrepare {place in the group}    once per generation
//   kPrepared {address}
//                                       kConnect {addresses, policy}
//   kConnected {policy}
//                                       kStep {generation, number, plan}
//   kStepDone {number, output | error}
//   kFailed {status}: final                kAbort {generation, reason}: leave the group, keep the
//   weights kPong                                  kPing kProgress {bytes done, of} kExit
#pragma once

#include <cstdint>

namespace nibble::engine {

enum class RankMessage : uint32_t {
  kLoaded = 1,
  kAllocated,
  kPrepared,
  kConnected,
  kStepDone,
  kFailed,
  kPong,
  kProgress,
  kAllocate = 101,
  kPrepare,
  kConnect,
  kStep,
  kAbort,
  kPing,
  kExit,
};

}  // namespace nibble::engine
