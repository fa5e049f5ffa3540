// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The decoder family: Llama, Mistral, Qwen2 and Qwen3, and those of them with experts, differ in
// what ModelConfig says of them (biases, q/k norms, windows, RoPE, experts), not in the order of
// operations.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/linear.h"
#include "engine/model/model.h"
#include "engine/model/moe_layer.h"
#include "engine/model/plan_check.h"
#include "engine/model/shard.h"
#include "kernels/rope/rope.h"

namespace nibble::engine {

// Rows of the vocabulary, this rank's.
struct EmbeddingTable {
  DType dtype = DType::kBf16;   // f32, bf16 or f16
  Range ids;                    // of the rows
  AlignedBuffer<uint8_t> rows;  // [ids.size(), hidden_size] of dtype
};

// num_heads, num_kv_heads and intermediate_size are the rank's.
struct DecoderLayer {
  std::vector<float> input_norm;  // [hidden_size]
  Linear qkv;                     // n = (num_heads + 2 * num_kv_heads) * head_dim: q, k, v rows
  std::vector<float> q_norm;      // [head_dim], or empty: none
  std::vector<float> k_norm;
  Linear o;                                // n = hidden_size, to be summed over the ranks
  std::vector<float> post_attention_norm;  // [hidden_size]
  // Of a dense layer; with experts these are empty.
  Linear gate_up;                 // n = 2 * intermediate_size: gate, up rows
  Linear down;                    // n = hidden_size, to be summed over the ranks
  std::optional<MoeWeights> moe;  // a layer with experts
};

struct DecoderWeights {
  EmbeddingTable embedding;          // the first stage's; else empty
  std::vector<DecoderLayer> layers;  // of the stage
  std::vector<float> final_norm;     // [hidden_size]: the last stage's; else empty
  Linear lm_head;                    // n = the rank's rows of the vocabulary; the last stage's
  DType kv_dtype = DType::kBf16;
  std::string quantization_name;  // Model::quantization_name()
  std::vector<std::string> warnings;

  int64_t size_bytes() const;
  // Model::step_weight_bytes()
  int64_t step_bytes(const ModelConfig& config, const RankPlace& place) const;
  bool reorders() const;  // some layer reorders its input channels (act-order)
};

// Activations of a step are float32, int8 only where a quantized layer reads them. Every op
// computes a row from that row alone (attention: and from the cache), in an order that does not
// depend on the other rows, so a token's bits do not depend on the batch or the chunk it came in.
// Sums over the ranks keep this as long as all steps' sums travel alike (comm/communicator.h).
//
// The residual stream is the same bits on every rank: it is made of what all-reduces gave.
class DecoderModel final : public Model {
 public:
  // `weights` are the share of options.place, which CheckSplit accepted; options.expert_layout is
  // that of a model with experts, and passed CheckExpertLayout.
  DecoderModel(ModelConfig config, DecoderWeights weights, const LoadOptions& options);

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override { return weights_.size_bytes(); }
  int64_t step_weight_bytes() const override { return weights_.step_bytes(config_, place_); }
  DType kv_dtype() const override { return weights_.kv_dtype; }
  std::string quantization_name() const override { return weights_.quantization_name; }
  std::vector<std::string> warnings() const override { return weights_.warnings; }
  const ModelConfig& rank_config() const override { return rank_config_; }
  void SetCommunicator(comm::Communicator* communicator) override { communicator_ = communicator; }
  void SetStageLink(comm::StageLink* link) override { stage_link_ = link; }
  ExpertLoad expert_load() const override { return moe_.has_value() ? moe_->load() : ExpertLoad{}; }
  bool has_logits() const override { return place_.rank == 0 && place_.is_last_stage(); }
  absl::StatusOr<std::unique_ptr<KvCache>> MakeKvCache(int64_t num_blocks,
                                                       int64_t block_size) const override;
  KvMemory kv_memory() const override;
  absl::Status Reserve(const StepLimits& limits, ThreadPool* pool) override;
  int64_t StepBytes(const StepLimits& limits) const override;
  absl::Status Forward(const StepPlan& plan, KvCache* cache, float* logits,
                       ThreadPool* pool) override;

 private:
  int64_t RowBytes(int64_t num_rows) const;
  int64_t SampleBytes(int64_t num_samples) const;
  int64_t PositionBytes(int64_t num_positions) const;
  absl::Status ReserveRows(int64_t num_rows);
  absl::Status ReserveSamples(int64_t num_samples);
  absl::Status ReservePositions(int64_t num_positions, ThreadPool* pool);
  absl::Status GrowFor(const StepPlan& plan, ThreadPool* pool);
  absl::Status CheckCommunicator() const;
  // x_ of the stage's first layer.
  absl::Status Embed(const StepPlan& plan, ThreadPool* pool);
  absl::Status ReceiveRows(int64_t num_rows);
  // To the next stage, from x_ and delta_.
  absl::Status SendRows(int64_t num_rows, ThreadPool* pool);
  // qkv_ from x_ and delta_, keys and values into the cache.
  void ProjectQkv(const DecoderLayer& layer, const StepPlan& plan,
                  const kernels::KvCacheView& cache, bool first, ThreadPool* pool);
  void NormHeads(float* heads, int64_t num_heads, const std::vector<float>& weight,
                 int64_t num_rows, ThreadPool* pool);
  void Attend(int64_t layer_idx, const StepPlan& plan, const kernels::KvCacheView& cache,
              ThreadPool* pool);
  // Those that are sampled alone; returns their positions.
  std::span<const int32_t> KeepRows(const StepPlan& plan);
  // x_ and delta_ from attention_: output projection and feed-forward of the rows at `positions`.
  absl::Status FeedForward(int64_t layer_idx, std::span<const int32_t> positions, ThreadPool* pool);
  void FeedForwardDense(const DecoderLayer& layer, int64_t num_rows, ThreadPool* pool);
  // x_ += delta_, normalized to what the next layer reads.
  void Normalize(const std::vector<float>& weight, int64_t num_rows, bool add_delta,
                 const LinearInput& out, ThreadPool* pool);
  // delta_ becomes its sum over the ranks of the stage.
  absl::Status SumDelta(int64_t num_rows, ThreadPool* pool);
  // `logits` [num_rows, vocab_size] on rank 0 from x_ and delta_.
  absl::Status ComputeLogits(int64_t num_rows, float* logits, ThreadPool* pool);
  absl::Status GatherLogits(int64_t num_rows, float* logits, ThreadPool* pool);

  const ModelConfig config_;
  const RankPlace place_;
  const ModelConfig rank_config_;  // config_ with this rank's layers, heads and channels
  const DecoderWeights weights_;
  const Isa isa_;
  const int64_t q_size_;                   // num_heads * head_dim, the rank's
  const int64_t kv_size_;                  // num_kv_heads * head_dim, the rank's
  const int64_t qkv_size_;                 // q_size + 2 * kv_size
  const int64_t dense_intermediate_size_;  // the rank's; 0: all layers have experts
  const ActivationForms activation_forms_;
  std::optional<MoeLayers> moe_;  // of a model with experts

  comm::Communicator* communicator_ = nullptr;  // not owned; null with one rank
  comm::StageLink* stage_link_ = nullptr;       // not owned; null with one stage
  PlanChecker checker_;
  kernels::RopeTable rope_;  // of the positions reserved or seen

  // Workspaces with room for row_capacity_ tokens.
  int64_t row_capacity_ = 0;
  AlignedBuffer<float> x_;               // [num_tokens, hidden_size]: the residual stream
  AlignedBuffer<float> delta_;           // [num_tokens, hidden_size]: what the next norm adds to it
  AlignedBuffer<float> qkv_;             // [num_tokens, qkv_size]
  AlignedBuffer<float> attention_;       // [num_tokens, q_size]
  AlignedBuffer<float> gate_up_;         // [num_tokens, 2 * intermediate_size]: of dense layers
  ActivationBuffer activations_;         // the input of the next linear layer
  std::vector<int32_t> kept_positions_;  // [num_tokens]

  // With several ranks, room for sample_capacity_ rows of logits.
  int64_t sample_capacity_ = 0;
  AlignedBuffer<float> own_logits_;    // [num_samples, the rank's rows of the vocabulary]
  AlignedBuffer<float> rank_logits_;   // rank 0: own_logits_ of all ranks, one after the other
  std::vector<size_t> bytes_of_rank_;  // of these
};

}  // namespace nibble::engine
