// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The feed-forward half of a layer with experts, on one rank (PPMoE, arXiv:2304.11414; README.md
// has the drawing). Every rank routes all tokens, on the same bits, and computes the experts that
// it has; what it gives is summed over the ranks by one all-reduce. No token travels.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/communicator.h"
#include "engine/model/grouped_linear.h"
#include "engine/model/linear.h"
#include "engine/model/model_config.h"
#include "engine/model/shard.h"
#include "engine/moe/expert_layout.h"
#include "engine/moe/expert_load.h"

namespace nibble::engine {

struct MoeWeights {
  Linear router;          // n = num_experts, dense float32; whole
  GroupedLinear gate_up;  // by slot of this rank; n = 2 * (the rank's channels of an expert)
  GroupedLinear down;     // n = hidden_size, to be summed over the ranks
  // The shared expert, which all tokens go to, cut over all ranks of the stage; without one, empty.
  Linear shared_gate_up;
  Linear shared_down;
  std::vector<float> shared_gate;  // [hidden_size]: its output is times sigmoid(shared_gate . x)

  bool has_shared_expert() const { return !shared_gate.empty(); }
  // Of what router, experts, shared expert and its gate read.
  ActivationForms input_forms() const;
  int64_t size_bytes() const;
  bool reorders() const;
};

// The layers with experts of one rank, which take turns in one workspace. Not thread-safe but for
// load().
class MoeLayers {
 public:
  // `layers` are those of the rank's stage, null where a layer is dense, and outlive this; the
  // first of them is number `first_layer` of the model. `layout` passed CheckExpertLayout.
  MoeLayers(const ModelConfig& config, const RankPlace& place, const ExpertLayout& layout,
            std::vector<const MoeWeights*> layers, int64_t first_layer, bool check_routing,
            Isa isa);

  // Room for steps of `num_tokens` tokens. std::bad_alloc when there is none.
  void Allocate(int64_t num_tokens);
  int64_t BytesFor(int64_t num_tokens) const;  // what this takes

  void BeginStep();
  // out [num_tokens, hidden_size] = this rank's part of what layer `layer_idx` of the stage gives.
  // `input` has the layer's input_forms(), and is not written. `positions` [num_tokens] are the
  // tokens' in their sequences, by which they choose among copies of an expert.
  void Run(int64_t layer_idx, const LinearInput& input, const int32_t* positions,
           int64_t num_tokens, float* out, ThreadPool* pool);
  // With `check_routing`, at the end of a step: INTERNAL on all ranks, naming layer and ranks, when
  // some routed tokens of it differently.
  absl::Status CheckRouting(comm::Communicator* communicator);

  ExpertLoad load() const { return load_.Read(); }

 private:
  struct Layer {
    const MoeWeights* weights = nullptr;
    SlotTable slots;
  };

  void Route(int64_t layer_idx, const LinearInput& input, const int32_t* positions,
             int64_t num_tokens, ThreadPool* pool);
  // slot_ids_ from expert_ids_, and what is counted on the way.
  void ChooseSlots(int64_t layer_idx, const int32_t* positions, int64_t num_tokens);
  // Rows of a piece. Of E parts of experts a rank expects 1/E of all rows; it has room for half as
  // many again, and only when it gets more than that reads an expert's weights twice. Experts in
  // one part are one piece.
  int64_t PieceRows(int64_t num_tokens) const;
  // expert_out_ of all rows, a piece of them at a time.
  void RunExperts(const MoeWeights& weights, const LinearInput& input, ThreadPool* pool);
  void RunPiece(const MoeWeights& weights, const LinearInput& input, int64_t first_row,
                int64_t num_rows, ThreadPool* pool);
  void RunShared(const MoeWeights& weights, const LinearInput& input, int64_t num_tokens,
                 float* out, ThreadPool* pool);

  const int64_t hidden_;
  const int64_t num_experts_;
  const int64_t top_k_;  // experts of a token
  const bool renormalize_;
  const int64_t num_slots_;  // of this rank
  const int64_t first_slot_;
  const int64_t first_layer_;
  const int num_ranks_;    // of the stage
  const int expert_size_;  // parts of experts
  const bool check_routing_;
  const Isa isa_;
  std::vector<std::optional<Layer>> layers_;  // [num_layers of the stage]

  // The largest of the layers'.
  int64_t max_gate_up_ = 0;         // floats of gate and up a row
  int64_t max_down_k_ = 0;          // elements of a row of the second half's input
  int64_t max_shared_gate_up_ = 0;  // the same of the shared expert
  int64_t max_shared_k_ = 0;
  int64_t max_reordered_k_ = 0;  // of rows that are put in an expert's order
  ActivationForms down_forms_;
  ActivationForms shared_forms_;

  // Workspaces: num_tokens tokens, num_rows = num_tokens * top_k rows, piece_rows of these.
  int64_t piece_rows_ = 0;
  AlignedBuffer<float> logits_;         // [num_tokens, num_experts]
  AlignedBuffer<float> weights_;        // [num_tokens, top_k]
  std::vector<int32_t> expert_ids_;     // [num_tokens, top_k]
  std::vector<int32_t> slot_ids_;       // [num_tokens, top_k]
  std::vector<int32_t> row_of_;         // [num_tokens, top_k]
  std::vector<int32_t> token_of_row_;   // [num_rows]
  std::vector<int32_t> offsets_;        // [num_slots + 1]
  std::vector<int32_t> piece_offsets_;  // [num_slots + 1]
  AlignedBuffer<float> gate_up_;        // [piece_rows, 2 * channels]; then the shared expert's
  ActivationBuffer down_input_;         // [piece_rows, channels]
  ActivationBuffer shared_input_;       // [num_tokens, channels]
  AlignedBuffer<float> expert_out_;     // [num_rows, hidden_size]
  QuantizedRowsBuffer reordered_;       // [piece_rows, max_reordered_k] or empty

  std::vector<uint32_t> tokens_of_expert_;  // [num_experts]
  ExpertLoadCounter load_;
  std::vector<uint64_t> hash_of_layer_;   // [num_layers of the stage]: of the expert ids of a step
  std::vector<uint64_t> hashes_of_rank_;  // [num_ranks, num_layers of the stage]
};

}  // namespace nibble::engine
