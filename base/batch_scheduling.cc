// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/batch_scheduling.h"

#include <sched.h>

namespace nibble {
namespace {

// Of the calling thread; true when it took effect.
bool SetPolicy(int policy) {
  sched_param parameters{};
  return sched_setscheduler(0, policy, &parameters) == 0;
}

}  // namespace

// From any policy but the ordinary one there may be no way back.
ScopedBatchScheduling::ScopedBatchScheduling()
    : changed_(sched_getscheduler(0) == SCHED_OTHER && SetPolicy(SCHED_BATCH)) {}

ScopedBatchScheduling::~ScopedBatchScheduling() {
  if (changed_) SetPolicy(SCHED_OTHER);
}

}  // namespace nibble
