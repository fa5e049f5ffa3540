// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sequences of one length on a model, without a scheduler: a KV cache that holds them, and the step
// plans that compute them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model.h"
#include "engine/scheduler/step_plan.h"

namespace nibble::bench {

struct ModelBatchShape {
  int64_t num_seqs = 1;
  int64_t max_tokens = 0;  // of a sequence
  int64_t max_chunk = 1;   // tokens of a sequence in a step
};

class ModelBatch {
 public:
  // Takes the memory of cache, logits and the largest step.
  static absl::StatusOr<ModelBatch> Create(engine::Model* model, const ModelBatchShape& shape,
                                           ThreadPool* pool);

  // Random keys and values everywhere, where the cache is in this host's memory. A device's stays
  // zeros: its steps read as many bytes, but switch fewer bits than a model's would.
  void FillCache(Isa isa, ThreadPool* pool);

  // The step that computes `num_tokens` random tokens of every sequence behind the `context` ones
  // it has, and samples after the last one (greedily) where `sample` is set.
  engine::StepPlan MakePlan(int64_t context, int64_t num_tokens, bool sample) const;
  // Runs it: on this host as far as the logits, on a device as far as the tokens.
  absl::Status Step(int64_t context, int64_t num_tokens, bool sample, ThreadPool* pool);

  // Keys and values of one token of all layers.
  int64_t bytes_per_token() const { return bytes_per_token_; }
  engine::KvCache* cache() const { return cache_.get(); }

 private:
  ModelBatch(engine::Model* model, const ModelBatchShape& shape,
             std::unique_ptr<engine::KvCache> cache, AlignedBuffer<float> logits);
  int32_t BlockOf(int64_t sequence, int64_t position) const;

  engine::Model* model_;
  ModelBatchShape shape_;
  std::unique_ptr<engine::KvCache> cache_;
  AlignedBuffer<float> logits_;        // [num_seqs, vocab_size]; on a device empty
  std::vector<int32_t> block_tables_;  // [num_seqs, blocks_per_seq_]
  int64_t blocks_per_seq_ = 0;
  int64_t bytes_per_token_ = 0;
};

}  // namespace nibble::bench
