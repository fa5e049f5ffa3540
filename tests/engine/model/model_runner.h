// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Drives a model by hand: sequences, chunks and batches of any shape, without a scheduler.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "engine/model/model.h"
#include "engine/scheduler/step_plan.h"
#include "tests/testing/random.h"

namespace nibble::testing {

// Every instruction set that kernels know and this host can run.
inline std::vector<Isa> HostIsas() {
  std::vector<Isa> isas = {Isa::kRef};
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx}) {
    if (HostCpuFeatures().Best() >= isa) isas.push_back(isa);
  }
  return isas;
}

inline std::string IsaName(const ::testing::TestParamInfo<Isa>& info) {
  return std::string(ToString(info.param));
}

struct TestSequence {
  std::vector<int32_t> ids;
  std::vector<int32_t> blocks;  // block table
  int64_t num_computed = 0;
};

// The next `num_tokens` ids of a sequence, and which of them want logits.
struct TestChunk {
  TestSequence* sequence = nullptr;
  int64_t num_tokens = 0;
  bool all_logits = false;  // else the last token's only
};

class ModelRunner {
 public:
  ModelRunner(engine::Model* model, int64_t num_blocks, ThreadPool* pool, int64_t block_size = 16)
      : model_(model), pool_(pool), block_size_(block_size) {
    auto cache = model->MakeKvCache(num_blocks, block_size);
    EXPECT_TRUE(cache.ok()) << cache.status();
    if (cache.ok()) cache_ = *std::move(cache);
    // Blocks in a shuffled order, so that neighbours in a sequence are none in memory.
    for (int64_t b = 0; b < num_blocks; ++b) free_blocks_.push_back(static_cast<int32_t>(b));
    Random random(7);
    for (size_t i = free_blocks_.size(); i > 1; --i) {
      std::swap(free_blocks_[i - 1],
                free_blocks_[static_cast<size_t>(random.Int(0, static_cast<int64_t>(i) - 1))]);
    }
  }

  engine::StepPlan MakePlan(const std::vector<TestChunk>& chunks) {
    engine::StepPlan plan;
    plan.query_start.push_back(0);
    size_t max_blocks = 0;
    for (const TestChunk& chunk : chunks) {
      TestSequence& sequence = *chunk.sequence;
      const int64_t end = sequence.num_computed + chunk.num_tokens;
      while (static_cast<int64_t>(sequence.blocks.size()) * block_size_ < end) {
        EXPECT_FALSE(free_blocks_.empty());
        sequence.blocks.push_back(free_blocks_.back());
        free_blocks_.pop_back();
      }
      for (int64_t position = sequence.num_computed; position < end; ++position) {
        if (chunk.all_logits || position + 1 == end) {
          plan.logits_indices.push_back(static_cast<int32_t>(plan.num_tokens()));
        }
        plan.token_ids.push_back(sequence.ids[static_cast<size_t>(position)]);
        plan.positions.push_back(static_cast<int32_t>(position));
        const int64_t block = sequence.blocks[static_cast<size_t>(position / block_size_)];
        plan.slot_mapping.push_back(
            static_cast<int32_t>(block * block_size_ + position % block_size_));
      }
      plan.query_start.push_back(static_cast<int32_t>(plan.num_tokens()));
      plan.context_lens.push_back(static_cast<int32_t>(end));
      max_blocks = std::max(max_blocks, sequence.blocks.size());
    }
    plan.max_blocks_per_seq = static_cast<int32_t>(max_blocks);
    for (const TestChunk& chunk : chunks) {
      const std::vector<int32_t>& blocks = chunk.sequence->blocks;
      plan.block_tables.insert(plan.block_tables.end(), blocks.begin(), blocks.end());
      plan.block_tables.resize(plan.block_tables.size() + max_blocks - blocks.size(), 0);
    }
    return plan;
  }

  // Logits [num_samples, vocab_size] of the chunks, in their order.
  std::vector<float> Step(const std::vector<TestChunk>& chunks) {
    const engine::StepPlan plan = MakePlan(chunks);
    std::vector<float> logits(
        static_cast<size_t>(plan.num_samples() * model_->config().vocab_size));
    const absl::Status status = model_->Forward(plan, cache_.get(), logits.data(), pool_);
    EXPECT_TRUE(status.ok()) << status;
    for (const TestChunk& chunk : chunks) chunk.sequence->num_computed += chunk.num_tokens;
    return logits;
  }

  // Logits of all ids of a fresh sequence, computed `chunk_size` tokens at a time.
  std::vector<float> Prefill(const std::vector<int32_t>& ids, int64_t chunk_size) {
    TestSequence sequence{.ids = ids};
    std::vector<float> logits;
    while (sequence.num_computed < static_cast<int64_t>(ids.size())) {
      const int64_t left = static_cast<int64_t>(ids.size()) - sequence.num_computed;
      const std::vector<float> part = Step(
          {{.sequence = &sequence, .num_tokens = std::min(chunk_size, left), .all_logits = true}});
      logits.insert(logits.end(), part.begin(), part.end());
    }
    Free(&sequence);
    return logits;
  }

  // Forgets what was computed, as preemption does.
  void Free(TestSequence* sequence) {
    free_blocks_.insert(free_blocks_.begin(), sequence->blocks.begin(), sequence->blocks.end());
    sequence->blocks.clear();
    sequence->num_computed = 0;
  }

  engine::KvCache* cache() { return cache_.get(); }

 private:
  engine::Model* model_;
  ThreadPool* pool_;
  int64_t block_size_;
  std::unique_ptr<engine::KvCache> cache_;
  std::vector<int32_t> free_blocks_;
};

inline int32_t ArgMax(const float* logits, int64_t vocab_size) {
  return static_cast<int32_t>(std::max_element(logits, logits + vocab_size) - logits);
}

// A model that must load; null (and a failed test) when it does not.
inline std::unique_ptr<engine::Model> LoadOrFail(const std::string& dir,
                                                 const engine::LoadOptions& options,
                                                 ThreadPool* pool) {
  auto model = engine::Model::Load(dir, options, pool);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? std::move(model).value() : nullptr;
}

// Bit by bit: also NaN equals itself.
inline ::testing::AssertionResult SameBits(const std::vector<float>& a,
                                           const std::vector<float>& b) {
  if (a.size() != b.size()) {
    return ::testing::AssertionFailure() << a.size() << " and " << b.size() << " values";
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return ::testing::AssertionFailure() << "value " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace nibble::testing
