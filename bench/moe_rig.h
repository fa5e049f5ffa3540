// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The feed-forward half of layers with experts, with random weights, beside dense ones that have as
// many parameters as a token meets of them: an intermediate size of k experts together.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/gemm_subject.h"
#include "engine/model/linear.h"
#include "engine/model/model_config.h"
#include "engine/model/moe_layer.h"

namespace nibble::bench {

struct MoeShape {
  std::string name;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;    // of one expert
  int64_t num_experts = 0;          // E
  int64_t num_experts_per_tok = 0;  // k
  bool norm_topk_prob = true;
};

// What a layer with experts does beside its grouped products.
enum class MoeOp { kRouter, kRoute, kPermute, kCombine };
inline constexpr size_t kNumMoeOps = 4;
std::string_view ToString(MoeOp op);

class MoeRig {
 public:
  // Layers with experts of `rotated_bytes` or more together, and dense ones: they run in turn.
  static absl::StatusOr<std::unique_ptr<MoeRig>> Create(const MoeShape& shape,
                                                        const WeightKind& kind,
                                                        int64_t rotated_bytes, Isa isa,
                                                        ThreadPool* pool);

  // Before the others: memory and activations for steps of `num_tokens` tokens.
  void Prepare(int64_t num_tokens);

  // Each runs one step of one layer, the next one and on other activations than the last time.
  // Seconds.
  double RunMoe(int64_t* experts_hit);
  double RunDense();
  std::array<double, kNumMoeOps> RunOps();

  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t num_dense() const { return static_cast<int64_t>(dense_.size()); }
  int64_t expert_bytes() const;  // of one
  int64_t router_bytes() const { return layers_[0].router.size_bytes(); }
  int64_t dense_bytes() const { return dense_[0].size_bytes(); }

 private:
  struct DenseFeedForward {
    engine::Linear gate_up;
    engine::Linear down;
    int64_t size_bytes() const { return gate_up.size_bytes() + down.size_bytes(); }
  };

  MoeRig(MoeShape shape, Isa isa, ThreadPool* pool)
      : shape_(std::move(shape)), isa_(isa), pool_(pool) {}
  absl::Status MakeWeights(const WeightKind& kind, int64_t rotated_bytes);
  // The next of the inputs.
  engine::LinearInput Input(int64_t run);
  int64_t CountHit();

  const MoeShape shape_;
  const Isa isa_;
  ThreadPool* const pool_;
  std::vector<engine::MoeWeights> layers_;
  std::vector<DenseFeedForward> dense_;
  std::optional<engine::MoeLayers> moe_;
  engine::ExpertLoad last_load_;

  int64_t num_tokens_ = 0;
  int64_t num_moe_runs_ = 0;
  int64_t num_dense_runs_ = 0;
  int64_t num_op_runs_ = 0;
  // Different tokens, so that a layer's next run meets other experts.
  std::vector<engine::ActivationBuffer> inputs_;
  std::vector<int32_t> positions_;  // [num_tokens]
  AlignedBuffer<float> gate_up_;    // [num_tokens, 2 * k * intermediate_size]: dense
  engine::ActivationBuffer down_;   // [num_tokens, k * intermediate_size]: dense
  AlignedBuffer<float> out_;        // [num_tokens, hidden_size]
  // Of RunOps.
  AlignedBuffer<float> logits_;        // [num_tokens, E]
  AlignedBuffer<float> weights_;       // [num_tokens, k]
  AlignedBuffer<float> expert_out_;    // [num_tokens * k, hidden_size]
  std::vector<int32_t> expert_ids_;    // [num_tokens, k]
  std::vector<int32_t> row_of_;        // [num_tokens, k]
  std::vector<int32_t> token_of_row_;  // [num_tokens * k]
  std::vector<int32_t> offsets_;       // [E + 1]
};

}  // namespace nibble::bench
