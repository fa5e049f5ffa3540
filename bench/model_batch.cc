// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/model_batch.h"

#include <new>
#include <random>
#include <utility>

#include "bench/cache_fill.h"

namespace nibble::bench {
namespace {

constexpr int64_t kBlockSize = 16;  // `nibble serve`'s

}  // namespace

ModelBatch::ModelBatch(engine::Model* model, const ModelBatchShape& shape,
                       std::unique_ptr<engine::KvCache> cache, AlignedBuffer<float> logits)
    : model_(model), shape_(shape), cache_(std::move(cache)), logits_(std::move(logits)) {
  blocks_per_seq_ = cache_->num_blocks() / shape_.num_seqs;
  bytes_per_token_ =
      engine::KvCache::BlockBytes(model->config(), kBlockSize, model->kv_dtype()) / kBlockSize;
  block_tables_ = ShuffledBlocks(cache_->num_blocks());
}

absl::StatusOr<ModelBatch> ModelBatch::Create(engine::Model* model, const ModelBatchShape& shape,
                                              ThreadPool* pool) {
  const engine::ModelConfig& config = model->config();
  if (shape.max_tokens > config.max_position_embeddings) {
    return InvalidArgument("sequences of {} tokens: the model's limit is {}", shape.max_tokens,
                           config.max_position_embeddings);
  }
  NIBBLE_RETURN_IF_ERROR(model->Reserve({.max_tokens = shape.num_seqs * shape.max_chunk,
                                         .max_positions = shape.max_tokens,
                                         .max_samples = shape.num_seqs,
                                         .max_seqs = shape.num_seqs,
                                         .block_size = kBlockSize},
                                        pool));
  const int64_t num_blocks = shape.num_seqs * ((shape.max_tokens + kBlockSize - 1) / kBlockSize);
  NIBBLE_ASSIGN_OR_RETURN(auto cache, model->MakeKvCache(num_blocks, kBlockSize));
  try {
    return ModelBatch(model, shape, std::move(cache),
                      AlignedBuffer<float>(static_cast<size_t>(
                          model->host_logits_rows(shape.num_seqs) * config.vocab_size)));
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("memory for the logits of {} sequences could not be allocated",
                             shape.num_seqs);
  }
}

void ModelBatch::FillCache(Isa isa, ThreadPool* pool) {
  const engine::ModelConfig& config = model_->config();
  auto* const cache = dynamic_cast<engine::HostKvCache*>(cache_.get());
  if (cache == nullptr) return;
  FillKvCache(cache,
              {.num_layers = config.num_layers, .columns = config.num_kv_heads * config.head_dim},
              isa, pool);
}

int32_t ModelBatch::BlockOf(int64_t sequence, int64_t position) const {
  return block_tables_[static_cast<size_t>(sequence * blocks_per_seq_ + position / kBlockSize)];
}

engine::StepPlan ModelBatch::MakePlan(int64_t context, int64_t num_tokens, bool sample) const {
  engine::StepPlan plan;
  std::minstd_rand random(static_cast<uint32_t>(context + 1));
  const auto vocab_size = static_cast<uint32_t>(model_->config().vocab_size);
  plan.query_start.push_back(0);
  for (int64_t s = 0; s < shape_.num_seqs; ++s) {
    for (int64_t position = context; position < context + num_tokens; ++position) {
      plan.token_ids.push_back(static_cast<int32_t>(random() % vocab_size));
      plan.positions.push_back(static_cast<int32_t>(position));
      plan.slot_mapping.push_back(BlockOf(s, position) * static_cast<int32_t>(kBlockSize) +
                                  static_cast<int32_t>(position % kBlockSize));
    }
    plan.query_start.push_back(static_cast<int32_t>(plan.num_tokens()));
    plan.context_lens.push_back(static_cast<int32_t>(context + num_tokens));
    if (!sample) continue;
    plan.logits_indices.push_back(static_cast<int32_t>(plan.num_tokens() - 1));
    plan.sampling.push_back({.temperature = 0.0F});
  }
  plan.block_tables = block_tables_;
  plan.max_blocks_per_seq = static_cast<int32_t>(blocks_per_seq_);
  return plan;
}

absl::Status ModelBatch::Step(int64_t context, int64_t num_tokens, bool sample, ThreadPool* pool) {
  const engine::StepPlan plan = MakePlan(context, num_tokens, sample);
  if (model_->device_name().empty()) {
    return model_->Forward(plan, cache_.get(), logits_.data(), pool);
  }
  // As served: from a device come tokens, and not all logits.
  return model_->ForwardAndSample(plan, cache_.get(), {}, pool).status();
}

}  // namespace nibble::bench
