// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How threads that serve clients share CPUs with those that compute.
#pragma once

namespace nibble {

// While it lives, the calling thread has the scheduling policy SCHED_BATCH, and every thread that
// it starts has it for good: woken, it takes an idle CPU at once, but puts no other thread off a
// busy one before that thread's time slice is over. To compute threads each interruption is one of
// all of them, as they wait for each other; and what a client's thread finds to do when it comes a
// little later is more at a time. Where the system refuses, nothing changes.
class ScopedBatchScheduling {
 public:
  ScopedBatchScheduling();
  ~ScopedBatchScheduling();
  ScopedBatchScheduling(const ScopedBatchScheduling&) = delete;
  ScopedBatchScheduling& operator=(const ScopedBatchScheduling&) = delete;

 private:
  bool changed_ = false;
};

}  // namespace nibble
