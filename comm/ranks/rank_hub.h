// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The ranks of a group as their driver sees them: processes somewhere, each at the end of a two-way
// channel of frames. LocalRanks starts them on this host, ClusterServer has those of hosts that
// joined, and what drives them (engine/exec/rank_group.h) sees no difference.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::comm {

// One message between a rank and its driver. The hub carries it and does not look inside.
struct Frame {
  static constexpr size_t kMaxPayloadBytes = size_t{256} << 20;

  uint32_t type = 0;
  std::string payload;
};

// Why a rank was lost. The numbers travel between hosts.
enum class LossReason : uint32_t {
  kFailed = 0,       // none of the others: it said what is no message, it could not load, ...
  kKilled = 1,       // by a signal
  kExited = 2,       // by itself
  kSilent = 3,       // it did not answer, or did not read
  kUnreachable = 4,  // its host cannot be reached
  kHung = 5,         // it answers, but does not get on
};
inline constexpr uint32_t kLastLossReason = 5;

// "killed": the label of a metric.
constexpr std::string_view ToString(LossReason reason) {
  switch (reason) {
    case LossReason::kFailed:
      break;
    case LossReason::kKilled:
      return "killed";
    case LossReason::kExited:
      return "exited";
    case LossReason::kSilent:
      return "silent";
    case LossReason::kUnreachable:
      return "unreachable";
    case LossReason::kHung:
      return "hung";
  }
  return "failed";
}

class RankHub {
 public:
  // Calls come from the hub's threads, one at a time for each rank, different ranks at the same
  // time. They must not block. For each rank: OnUp, frames, OnDown, OnUp, ...
  class Observer {
   public:
    virtual ~Observer() = default;
    // A process of this rank is there (again): a fresh one, or, on another host, the one from
    // before the connection to that host was lost, with what it had loaded. Frames of both sides
    // may have been lost since OnDown, so a driver asks it what it holds.
    virtual void OnUp(int rank) = 0;
    virtual void OnFrame(int rank, Frame frame) = 0;
    // It is gone, or cannot be reached. `why` names what happened: "rank 1 (pid 4711): killed by
    // signal 9".
    virtual void OnDown(int rank, LossReason reason, const std::string& why) = 0;
  };

  virtual ~RankHub() = default;
  virtual int size() const = 0;

  // Begins; `observer` must outlive Stop().
  virtual absl::Status Start(Observer* observer) = 0;

  // Queues or sends a frame; dropped when the rank is not up (OnDown tells). Never waits for the
  // rank to read it: one that does not read is taken down. Thread-safe.
  virtual void Send(int rank, Frame frame) = 0;

  // Ends the rank's process if it is there (it may be stopped or stuck) and starts a new one, later
  // when the last ones died young. OnDown (if it was up) and OnUp follow; asked again meanwhile, it
  // does nothing. A rank that died stays down until this is called. For a rank whose host cannot be
  // reached it does nothing: a host that comes back starts those of its ranks that died.
  // Thread-safe.
  virtual void Restart(int rank, const std::string& why) = 0;

  // "rank 2 (pid 4711)", "rank 3 on node 1 (10.77.0.2)": for logs and errors. Thread-safe.
  virtual std::string Describe(int rank) const = 0;

  // What the rank is to bind for the network of the group, as a number; a host that came back may
  // have another one. Empty while its host was never there. Thread-safe.
  virtual std::string BindAddress(int rank) const = 0;

  // Ends the processes of this host and closes the channels. No call to the observer comes after
  // it.
  virtual void Stop() = 0;
};

}  // namespace nibble::comm
