// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A model for scheduler and engine tests: its "keys and values" are the token ids and positions
// written through slot_mapping, and the next token is a hash of what the block table leads to. A
// plan that reads a slot nobody wrote, or another sequence's, changes the tokens or fails the test.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "engine/scheduler/step_plan.h"

namespace nibble::testing {

using engine::SampledToken;
using engine::SamplingRow;
using engine::StepOutput;
using engine::StepPlan;

class FakeModel {
 public:
  FakeModel(int64_t num_blocks, int64_t block_size, int32_t vocab_size)
      : block_size_(block_size),
        vocab_size_(vocab_size),
        slots_(static_cast<size_t>(num_blocks * block_size)) {}

  // The token that follows `context`: what a sequence gets, alone or in any batch.
  static int32_t NextToken(const std::vector<int32_t>& context, const SamplingRow& row,
                           int32_t vocab_size) {
    uint64_t hash = row.seed ^ 0x9e3779b97f4a7c15U;
    for (const int32_t token : context) Mix(&hash, static_cast<uint64_t>(token));
    Mix(&hash, static_cast<uint64_t>(row.output_index));
    for (const int32_t token : row.output_token_ids) Mix(&hash, static_cast<uint64_t>(token));
    auto token = static_cast<int32_t>(hash % static_cast<uint64_t>(vocab_size));
    while (std::ranges::count(row.banned_token_ids, token) > 0) token = (token + 1) % vocab_size;
    return token;
  }

  StepOutput Run(const StepPlan& plan) {
    CheckShape(plan);
    for (size_t i = 0; i < plan.token_ids.size(); ++i) {
      slots_[static_cast<size_t>(plan.slot_mapping[i])] = {plan.token_ids[i], plan.positions[i]};
    }
    StepOutput output;
    size_t sample = 0;
    for (size_t s = 0; s < static_cast<size_t>(plan.num_seqs()); ++s) {
      const std::vector<int32_t> context = Read(plan, s);
      if (sample < plan.logits_indices.size() &&
          plan.logits_indices[sample] == plan.query_start[s + 1] - 1) {
        output.tokens.push_back(Sample(context, plan.sampling[sample]));
        ++sample;
      }
    }
    EXPECT_EQ(sample, plan.logits_indices.size());
    return output;
  }

  // What the slots hold is lost, but may be read: it makes wrong tokens.
  void Lose() { std::ranges::fill(slots_, Slot{.position = kLost}); }

 private:
  static constexpr int32_t kLost = -2;

  struct Slot {
    int32_t token_id = -1;
    int32_t position = -1;
  };

  static void Mix(uint64_t* hash, uint64_t value) {
    *hash ^= value + 0x9e3779b97f4a7c15U;
    *hash *= 0xbf58476d1ce4e5b9U;
    *hash ^= *hash >> 29;
  }

  static void CheckShape(const StepPlan& plan) {
    const auto num_tokens = static_cast<size_t>(plan.num_tokens());
    const auto num_seqs = static_cast<size_t>(plan.num_seqs());
    ASSERT_GT(num_seqs, 0U);
    ASSERT_EQ(plan.positions.size(), num_tokens);
    ASSERT_EQ(plan.slot_mapping.size(), num_tokens);
    ASSERT_EQ(plan.query_start.size(), num_seqs + 1);
    ASSERT_EQ(plan.query_start.front(), 0);
    ASSERT_EQ(plan.query_start.back(), static_cast<int32_t>(num_tokens));
    ASSERT_EQ(plan.block_tables.size(), num_seqs * static_cast<size_t>(plan.max_blocks_per_seq));
    ASSERT_EQ(plan.sampling.size(), plan.logits_indices.size());
  }

  std::vector<int32_t> Read(const StepPlan& plan, size_t s) const {
    std::vector<int32_t> context;
    for (int32_t position = 0; position < plan.context_lens[s]; ++position) {
      const int32_t block = plan.block_tables[s * static_cast<size_t>(plan.max_blocks_per_seq) +
                                              static_cast<size_t>(position / block_size_)];
      const Slot& slot = slots_[static_cast<size_t>(block * block_size_ + position % block_size_)];
      if (slot.position != kLost) {
        EXPECT_EQ(slot.position, position) << "sequence " << s << ", block " << block;
      }
      context.push_back(slot.token_id);
    }
    const int32_t first = plan.query_start[s];
    const int32_t last = plan.query_start[s + 1] - 1;
    EXPECT_LE(first, last);
    EXPECT_EQ(plan.positions[static_cast<size_t>(last)], plan.context_lens[s] - 1);
    return context;
  }

  SampledToken Sample(const std::vector<int32_t>& context, const SamplingRow& row) const {
    SampledToken sampled{.token_id = NextToken(context, row, vocab_size_)};
    if (row.logprobs >= 0) {
      sampled.logprobs.sampled = {sampled.token_id, -1.0F, 1};
      for (int32_t k = 0; k < row.logprobs; ++k) {
        sampled.logprobs.top.push_back({k, -1.0F - static_cast<float>(k), k + 1});
      }
    }
    return sampled;
  }

  int64_t block_size_;
  int32_t vocab_size_;
  std::vector<Slot> slots_;
};

}  // namespace nibble::testing
