// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Whether an engine makes progress, told without a lock: who asks learns it also while the engine
// thread, or the executor that it waits for, hangs.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace nibble::engine {

// Times are of the engine's clock.
struct EngineProgress {
  int64_t pending_since_ns = -1;  // when the first of the unfinished requests came; -1: none is
  int64_t step_since_ns = -1;     // when the executor turned to the step it is at; -1: none
  int64_t last_step_ns = 0;       // when the last step ended, or the executor was ready again

  // When the engine last had reason to be at its work without having ended a step since; -1: it
  // has nothing to do. A step in progress counts from its own start.
  int64_t waiting_since_ns() const {
    if (pending_since_ns < 0) return -1;
    return std::max({pending_since_ns, step_since_ns, last_step_ns});
  }
};

// Work comes and goes under the engine's mutex, the rest is told by the engine thread.
class Heartbeat {
 public:
  explicit Heartbeat(int64_t now_ns) : last_step_ns_(now_ns) {}

  void WorkCame(int64_t now_ns) { pending_since_ns_.store(now_ns); }
  void WorkIsDone() { pending_since_ns_.store(-1); }
  void StepBegan(int64_t now_ns) { step_since_ns_.store(now_ns); }
  // `is_next_under_way`: with several steps in flight, the executor has turned to the next one.
  // Also for a step that will not be done.
  void StepEnded(int64_t now_ns, bool is_next_under_way) {
    // In this order, and read in the other one: who reads between the two sees an engine that is
    // further on than it was, never one that is behind.
    last_step_ns_.store(now_ns);
    step_since_ns_.store(is_next_under_way ? now_ns : -1);
  }
  // After an outage, in which no step was possible.
  void ExecutorCameBack(int64_t now_ns) { last_step_ns_.store(now_ns); }

  // Any thread.
  EngineProgress Read() const {
    EngineProgress progress;
    progress.pending_since_ns = pending_since_ns_.load();
    progress.step_since_ns = step_since_ns_.load();
    progress.last_step_ns = last_step_ns_.load();
    return progress;
  }

 private:
  std::atomic<int64_t> pending_since_ns_{-1};
  std::atomic<int64_t> step_since_ns_{-1};
  std::atomic<int64_t> last_step_ns_;
};

}  // namespace nibble::engine
