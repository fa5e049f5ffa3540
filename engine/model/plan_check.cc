// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/plan_check.h"

#include <algorithm>

namespace nibble::engine {
namespace {

absl::Status CheckLengths(const StepPlan& plan) {
  const size_t num_tokens = plan.token_ids.size();
  if (plan.positions.size() != num_tokens || plan.slot_mapping.size() != num_tokens) {
    return InvalidArgument(
        "step plan has {} token ids, {} positions and {} slots: want as many of each", num_tokens,
        plan.positions.size(), plan.slot_mapping.size());
  }
  const size_t num_seqs = plan.context_lens.size();
  if (plan.query_start.size() != num_seqs + 1) {
    return InvalidArgument("step plan has {} entries in query_start, want {} for {} sequences",
                           plan.query_start.size(), num_seqs + 1, num_seqs);
  }
  if (plan.max_blocks_per_seq < 0) {
    return InvalidArgument("step plan: max_blocks_per_seq is {}, want 0 or more",
                           plan.max_blocks_per_seq);
  }
  const size_t num_entries = num_seqs * static_cast<size_t>(plan.max_blocks_per_seq);
  if (plan.block_tables.size() != num_entries) {
    return InvalidArgument("step plan has {} block table entries, want {} ({} sequences of {})",
                           plan.block_tables.size(), num_entries, num_seqs,
                           plan.max_blocks_per_seq);
  }
  if (plan.query_start.front() != 0 ||
      plan.query_start.back() != static_cast<int64_t>(num_tokens)) {
    return InvalidArgument("step plan: query_start goes from {} to {}, want 0 to {}",
                           plan.query_start.front(), plan.query_start.back(), num_tokens);
  }
  for (size_t s = 0; s < num_seqs; ++s) {
    if (plan.query_start[s] >= plan.query_start[s + 1]) {
      return InvalidArgument("step plan: sequence {} has tokens [{}, {}), want at least one", s,
                             plan.query_start[s], plan.query_start[s + 1]);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogitsIndices(const StepPlan& plan) {
  int64_t previous = -1;
  for (size_t i = 0; i < plan.logits_indices.size(); ++i) {
    const int64_t index = plan.logits_indices[i];
    if (index <= previous || index >= plan.num_tokens()) {
      return InvalidArgument("step plan: logits_indices[{}] is {}, the limits are {} and {}", i,
                             index, previous + 1, plan.num_tokens() - 1);
    }
    previous = index;
  }
  return absl::OkStatus();
}

absl::Status CheckTokenIds(const StepPlan& plan, int64_t vocab_size) {
  for (size_t i = 0; i < plan.token_ids.size(); ++i) {
    if (plan.token_ids[i] < 0 || plan.token_ids[i] >= vocab_size) {
      return InvalidArgument("step plan: token_ids[{}] is {}, the limits are 0 and {}", i,
                             plan.token_ids[i], vocab_size - 1);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PlanChecker::Check(const StepPlan& plan, const PlanLimits& limits) {
  NIBBLE_RETURN_IF_ERROR(CheckLengths(plan));
  NIBBLE_RETURN_IF_ERROR(CheckTokenIds(plan, limits.vocab_size));
  NIBBLE_RETURN_IF_ERROR(CheckLogitsIndices(plan));
  const auto num_words = static_cast<size_t>((limits.num_blocks * limits.block_size + 63) / 64);
  if (written_.size() < num_words) written_.resize(num_words, 0);
  absl::Status status;
  for (int64_t s = 0; s < plan.num_seqs() && status.ok(); ++s) {
    status = CheckSequence(plan, s, limits);
  }
  // Slots after the one at fault may be out of range.
  const int64_t num_slots = limits.num_blocks * limits.block_size;
  for (const int32_t slot : plan.slot_mapping) {
    if (slot >= 0 && slot < num_slots) written_[static_cast<size_t>(slot / 64)] = 0;
  }
  return status;
}

absl::Status PlanChecker::CheckSequence(const StepPlan& plan, int64_t seq_idx,
                                        const PlanLimits& limits) {
  const auto s = static_cast<size_t>(seq_idx);
  const int64_t begin = plan.query_start[s];
  const int64_t end = plan.query_start[s + 1];
  const int64_t context_len = plan.context_lens[s];
  const int64_t max_context =
      std::min(limits.max_positions, int64_t{plan.max_blocks_per_seq} * limits.block_size);
  if (context_len < end - begin || context_len > max_context) {
    return InvalidArgument("step plan: context_lens[{}] is {}, the limits are {} and {}", s,
                           context_len, end - begin, max_context);
  }
  const int32_t* table = plan.block_tables.data() + seq_idx * plan.max_blocks_per_seq;
  const int64_t num_blocks = (context_len + limits.block_size - 1) / limits.block_size;
  for (int64_t b = 0; b < num_blocks; ++b) {
    if (table[b] < 0 || table[b] >= limits.num_blocks) {
      return InvalidArgument("step plan: block {} of sequence {} is {}, the limits are 0 and {}", b,
                             s, table[b], limits.num_blocks - 1);
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    const int64_t position = context_len - (end - i);
    const auto index = static_cast<size_t>(i);
    if (plan.positions[index] != position) {
      return InvalidArgument(
          "step plan: positions[{}] is {}, want {} (sequence {} has {} new tokens of {})", i,
          plan.positions[index], position, s, end - begin, context_len);
    }
    const int64_t slot =
        table[position / limits.block_size] * limits.block_size + position % limits.block_size;
    if (plan.slot_mapping[index] != slot) {
      return InvalidArgument("step plan: slot_mapping[{}] is {}, the block table says {}", i,
                             plan.slot_mapping[index], slot);
    }
    uint64_t& word = written_[static_cast<size_t>(slot / 64)];
    const uint64_t bit = uint64_t{1} << (slot % 64);
    if ((word & bit) != 0) {
      return InvalidArgument("step plan: slot {} is written twice, the second time by token {}",
                             slot, i);
    }
    word |= bit;
  }
  return absl::OkStatus();
}

}  // namespace nibble::engine
