// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One rank of this host: its process, its channel, and what becomes of them. README.md draws the
// states.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/ranks/frame_sender.h"
#include "comm/ranks/frame_stream.h"
#include "comm/ranks/local_ranks.h"
#include "comm/ranks/rank_hub.h"

namespace nibble::comm {

// Send and Describe are thread-safe. All else is called by one thread, which waits on `epoll`,
// calls Step() when NextStep() has come and after everything else, and lives until gone(): the
// kernel kills the processes when the thread that started them ends (rank_process.h).
class LocalRank {
 public:
  using Clock = std::chrono::steady_clock;

  // The socket is watched with `key`. `options` must outlive it.
  LocalRank(int number, const LocalRanksOptions* options, int epoll, uint64_t key)
      : number_(number), options_(*options), sender_(epoll, key) {}

  // True: it waits, and NextStep() may be earlier now.
  bool Send(Frame frame) { return sender_.Send(std::move(frame)); }
  std::string Describe() const;

  // Once: a process is wanted, and `observer` is told.
  void Start(RankHub::Observer* observer);
  void Restart(std::string why);
  // What epoll said of the socket.
  void Receive();
  void Flush() { sender_.Flush(); }
  // What time has brought.
  void Step();
  Clock::time_point NextStep() const;  // max(): nothing is waited for
  // The channel closes once what waits is read, the process is killed at `deadline`, and the
  // observer is not called any more.
  void Stop(Clock::time_point deadline);
  bool gone() const { return state_ == State::kDown; }  // after Stop

 private:
  enum class State {
    kDown,     // no process, and nobody asked for one
    kWaiting,  // a process will be started at start_at_
    kUp,
    kEnding,  // killed, or its channel is closed; waited for
  };

  void StartProcess();
  void StartLater();
  void CheckReading();
  void StepToStop();
  // Closes the channel of a rank that is up. `kill`: the process is not given the time to end.
  void End(LossReason reason, std::string why, bool kill);
  void Kill();
  void Reap();
  void Ended(LossReason reason, const std::string& how);

  const int number_;
  const LocalRanksOptions& options_;
  FrameSender sender_;
  std::atomic<pid_t> pid_{0};  // 0: none

  // The thread's own.
  RankHub::Observer* observer_ = nullptr;
  State state_ = State::kDown;
  FrameReader reader_;
  Clock::time_point started_;
  Clock::time_point start_at_;
  int young_deaths_ = 0;                            // in a row
  bool restart_ = false;                            // kEnding: a new one is wanted
  std::string why_;                                 // kEnding: what was found, before its status
  LossReason reason_ = LossReason::kFailed;         // kEnding: of why_
  bool killed_ = false;                             // kEnding: by us
  Clock::time_point patience_;                      // kEnding: until then
  std::optional<Clock::time_point> stop_deadline_;  // set: stopping, the observer is not called
  std::vector<pid_t> hanging_;                      // killed, and waited for no longer
};

}  // namespace nibble::comm
