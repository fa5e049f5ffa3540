// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How much of what is there a step takes when several are in flight.

#include <algorithm>

#include "engine/scheduler/scheduler.h"

namespace nibble::engine {
namespace {

// A prompt is cut into so many parts for each step in flight.
constexpr int64_t kPartsPerStep = 4;

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// How many of the sequences that can decode now do so in this step. The first bound evens the steps
// out when sequences end, the second one when there are fewer than fill them all.
int64_t Scheduler::DecodeShare() const {
  int64_t num_decoding = 0;
  int64_t num_able = 0;
  for (const Sequence* sequence : running_) {
    num_decoding += sequence->num_remaining_tokens() <= 1 ? 1 : 0;
    num_able += sequence->num_remaining_tokens() == 1 ? 1 : 0;
  }
  return std::min(DivideUp(num_decoding, config_.max_steps_in_flight),
                  DivideUp(num_able, config_.max_steps_in_flight - num_steps_in_flight_));
}

int64_t Scheduler::PromptShare(int64_t budget) const {
  if (config_.max_steps_in_flight == 1) return budget;
  const int64_t max_parts = kPartsPerStep * config_.max_steps_in_flight;
  int64_t num_tokens = 0;  // counted until the share is the budget anyway
  for (const Sequence* sequence : running_) {
    if (sequence->num_remaining_tokens() > 1) num_tokens += sequence->num_remaining_tokens();
  }
  for (const auto& [order, sequence] : waiting_) {
    if (num_tokens >= max_parts * budget) break;
    num_tokens += sequence->num_tokens();
  }
  // Parts of one size: a small rest would cost a step of its own.
  const int64_t num_parts =
      std::clamp<int64_t>(num_tokens / config_.min_share_tokens, 1, max_parts);
  return std::min(budget, DivideUp(num_tokens, num_parts));
}

}  // namespace nibble::engine
