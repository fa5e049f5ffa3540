// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Copies of a decoder layer with random weights, and one step of them timed op by op.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/gemm_subject.h"
#include "bench/layer_bench.h"
#include "engine/model/linear.h"
#include "engine/model/model.h"
#include "kernels/rope/rope.h"

namespace nibble::bench {

enum class LayerOp {
  kInputNorm,  // with the residual addition and quantization
  kQkv,
  kRopeAppend,  // keys and values into the cache
  kAttention,
  kQuantize,  // attention's output
  kO,
  kPostNorm,
  kGateUp,
  kSilu,  // with quantization
  kDown,
};
inline constexpr size_t kNumLayerOps = 10;
std::string_view ToString(LayerOp op);

// One weight, no bias.
absl::StatusOr<engine::Linear> MakeRandomLinear(const WeightKind& kind, int64_t n, int64_t k,
                                                Isa isa, ThreadPool* pool);

struct LayerWeights {
  engine::Linear qkv;
  engine::Linear o;
  engine::Linear gate_up;
  engine::Linear down;
  int64_t size_bytes() const;
};

// Copies of `rotated_bytes` or more together.
absl::StatusOr<std::vector<LayerWeights>> MakeLayerCopies(const LayerShape& shape,
                                                          const WeightKind& kind,
                                                          int64_t rotated_bytes, Isa isa,
                                                          ThreadPool* pool);

// `num_seqs` sequences of `context` tokens, of which the last `num_new` are computed.
struct LayerCase {
  int64_t num_seqs = 1;
  int64_t num_new = 1;
  int64_t context = 1;
  int64_t num_rows() const { return num_seqs * num_new; }
};

class LayerStep {
 public:
  // RESOURCE_EXHAUSTED when the caches of all copies do not fit. `layers` must outlive the step.
  static absl::StatusOr<LayerStep> Create(const LayerShape& shape, const LayerCase& layer_case,
                                          DType kv_dtype, const std::vector<LayerWeights>& layers,
                                          Isa isa, ThreadPool* pool);

  // Runs every copy once; seconds of each op, all copies together.
  std::array<double, kNumLayerOps> Run();

  // Keys and values of one token of one copy.
  int64_t cache_bytes_per_token() const { return cache_bytes_per_token_; }

 private:
  LayerStep(const LayerShape& shape, const LayerCase& layer_case,
            const std::vector<LayerWeights>& layers, engine::HostKvCache cache, Isa isa,
            ThreadPool* pool);
  void RunLayer(const LayerWeights& layer, const kernels::KvCacheView& cache,
                std::array<double, kNumLayerOps>* seconds);

  LayerShape shape_;
  LayerCase case_;
  const std::vector<LayerWeights>* layers_;
  engine::HostKvCache cache_;  // a layer for each copy
  int64_t cache_bytes_per_token_ = 0;
  Isa isa_;
  ThreadPool* pool_;
  int64_t q_size_;
  int64_t kv_size_;
  int64_t qkv_size_;
  kernels::RopeTable rope_;
  std::vector<float> norm_;        // [hidden_size]
  AlignedBuffer<float> x_;         // [num_rows, hidden_size]
  AlignedBuffer<float> delta_;     // [num_rows, hidden_size]
  AlignedBuffer<float> qkv_;       // [num_rows, qkv_size_]
  AlignedBuffer<float> attended_;  // [num_rows, q_size_]
  AlignedBuffer<float> gate_up_;   // [num_rows, 2 * intermediate_size]
  engine::ActivationBuffer activations_;
  std::vector<int32_t> positions_;     // [num_rows]
  std::vector<int32_t> slots_;         // [num_rows]
  std::vector<int32_t> query_start_;   // [num_seqs + 1]
  std::vector<int32_t> context_lens_;  // [num_seqs]
  std::vector<int32_t> block_tables_;  // [num_seqs, blocks_per_seq]
};

}  // namespace nibble::bench
