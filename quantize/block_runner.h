// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The forward pass of one decoder layer over whole sequences, with the kernels that serve models:
// what calibration sees, and what the next layer reads.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"
#include "kernels/kv/kv_cache.h"
#include "kernels/rope/rope.h"
#include "quantize/block.h"
#include "quantize/feed_forward_runner.h"
#include "quantize/moe_runner.h"

namespace nibble::quantize {

// The residual stream of the calibration sequences between two layers.
struct HiddenStates {
  int64_t num_seqs = 0;
  int64_t length = 0;  // tokens of every sequence
  int64_t hidden = 0;
  AlignedBuffer<float> rows;  // [num_seqs * length, hidden]

  float* Sequence(int64_t seq) { return rows.data() + seq * length * hidden; }
};

// Matrices are held in float32 whatever they were rounded to; with 8-bit activations the input of
// every linear layer goes through int8 and back, token by token, as the engine's kernels do it.
// Keys and values are float32. A sequence's output does not depend on the others, nor on the
// number of threads.
class BlockRunner {
 public:
  // `config`, `rope` (of at least `length` positions) and `pool` must outlive the runner.
  // RESOURCE_EXHAUSTED when memory runs out.
  static absl::StatusOr<BlockRunner> Create(const engine::ModelConfig& config,
                                            const kernels::RopeTable& rope,
                                            const BlockWeights& weights, int activation_bits,
                                            Isa isa, ThreadPool* pool);
  // The same of a layer that is quantized; its matrices become floats one after another.
  static absl::StatusOr<BlockRunner> Create(const engine::ModelConfig& config,
                                            const kernels::RopeTable& rope,
                                            const QuantizedBlock& block, int activation_bits,
                                            Isa isa, ThreadPool* pool);
  // Of a layer with experts that need not be loaded: Run() ends when `observer` has seen their
  // input, and leaves in `x` the residual stream before them.
  static absl::StatusOr<BlockRunner> CreateWithoutExperts(const engine::ModelConfig& config,
                                                          const kernels::RopeTable& rope,
                                                          const BlockWeights& weights,
                                                          int activation_bits, Isa isa,
                                                          ThreadPool* pool);

  // x [num_seqs * length, hidden]: the layer's input, replaced by its output. `observer` may be
  // null; its first error ends the run. Of a mixture of experts it is shown the input alone, which
  // all experts and the router read, as kGateUp.
  absl::Status Run(float* x, int64_t num_seqs, int64_t length, const SiteObserver& observer);
  // Run over all sequences, a few at a time.
  absl::Status RunAll(HiddenStates* states, const SiteObserver& observer);

  // Sequences of `length` tokens that Run should be given at a time: enough rows for the matrix
  // products, few enough that its memory stays small.
  static int64_t SequencesPerRun(int64_t length);

 private:
  BlockRunner(const engine::ModelConfig& config, const kernels::RopeTable& rope, Isa isa,
              ThreadPool* pool)
      : config_(config), rope_(rope), isa_(isa), pool_(pool) {}

  // Norms, attention and router.
  absl::Status Init(const BlockWeights& weights, int activation_bits);
  void Reserve(int64_t num_seqs, int64_t length);
  void Norm(float* x, const float* delta, const std::vector<float>& weight, int64_t num_rows);
  void Attend(int64_t num_seqs, int64_t length);
  void NormHeads(float* heads, int64_t num_heads, const std::vector<float>& weight,
                 int64_t num_rows);
  // Shows `input` [num_rows, k] to the observer, rounds it as the scheme says (in place).
  absl::Status Enter(Site site, float* input, int64_t num_rows, int64_t k,
                     const SiteObserver& observer);
  // delta_ from input_.
  absl::Status RunFeedForward(int64_t num_rows, const SiteObserver& observer);

  const engine::ModelConfig& config_;
  const kernels::RopeTable& rope_;
  Isa isa_;
  ThreadPool* pool_;
  int64_t layer_idx_ = 0;
  int activation_bits_ = 16;
  std::vector<float> input_norm_, post_attention_norm_, q_norm_, k_norm_;
  std::array<DenseLayer, kAttentionMatrices> attention_layers_;  // q, k, v, o
  std::optional<FeedForwardRunner> feed_forward_;                // of a dense layer
  std::optional<MoeRunner> moe_;                                 // of one with experts
  bool has_experts_ = true;                                      // false: they were left out

  // What a run of some shape needs, made by the first of that shape.
  int64_t num_seqs_ = 0;
  int64_t length_ = 0;
  std::vector<int32_t> positions_;     // [num_rows]
  std::vector<int32_t> slots_;         // [num_rows]
  std::vector<int32_t> query_start_;   // [num_seqs + 1]
  std::vector<int32_t> context_lens_;  // [num_seqs]
  std::vector<int32_t> block_tables_;  // [num_seqs, blocks of a sequence]
  AlignedBuffer<float> input_;         // [num_rows, hidden]: normalized
  AlignedBuffer<float> delta_;         // [num_rows, hidden]
  AlignedBuffer<float> qkv_;           // [num_rows, q + 2 kv]
  AlignedBuffer<float> attention_;     // [num_rows, q]
  AlignedBuffer<float> keys_;          // of kv_cache_
  AlignedBuffer<float> values_;
  kernels::KvCacheView kv_cache_;
  Int8Rounding rounding_;
  FeedForwardWorkspace workspace_;
};

}  // namespace nibble::quantize
