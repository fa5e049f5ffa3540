// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which part of every tensor a rank holds. The one place that says so; all of it is pure
// arithmetic. Layers are cut into pipeline stages; inside a stage, tensors are cut as by
// Megatron-LM (arXiv:1909.08053), experts as in the PPMoE layout (arXiv:2304.11414).
//
//   q, k, v                by output channels, whole heads
//   gate, up               by output channels
//   o, down                by input channels: their outputs are sums over the ranks
//   experts                whole ones by expert rank; of each, gate, up and down as above by the
//                          rank's place among those that share the expert (expert_layout.h says
//                          which expert is where)
//   shared expert          as gate, up, down over all ranks of the stage
//   router                 whole, on every rank
//   embedding, lm_head     by rows of the vocabulary V, which need not divide: rank r of N has rows
//                          [r * V / N, (r + 1) * V / N); the first stage holds the embedding, the
//                          last one the head (where tied: the embedding) and the norm before it
//   everything else        whole, on every rank
//
// With fewer KV heads than ranks, N / num_kv_heads neighbours hold the same one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/model/model_config.h"

namespace nibble::engine {

// A rank's place: number `rank` of the `size` ranks of stage `stage`. Among all ranks of the model
// it is number stage * size + rank.
struct RankPlace {
  int rank = 0;
  int size = 1;
  // Into how many parts a layer's experts are cut (moe_ep); divides size. The other
  // size / expert_size = moe_tp ranks of a part hold slices of the same experts.
  int expert_size = 1;
  int stage = 0;
  int num_stages = 1;

  int moe_tp_size() const { return size / expert_size; }
  int moe_tp_rank() const { return rank % moe_tp_size(); }
  int expert_rank() const { return rank / moe_tp_size(); }
  bool is_first_stage() const { return stage == 0; }
  bool is_last_stage() const { return stage + 1 == num_stages; }
  int world_rank() const { return stage * size + rank; }
  int world_size() const { return num_stages * size; }
};

// begin, begin + 1, ... end - 1
struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// A stored matrix [n, k] (output channels, input channels) and the part of it that a rank holds.
struct MatrixShare {
  int64_t n = 0;
  int64_t k = 0;
  Range rows;     // of n
  Range columns;  // of k

  static MatrixShare Whole(int64_t n, int64_t k) { return {n, k, {0, n}, {0, k}}; }
  bool has_all_columns() const { return columns.size() == k; }
  bool is_whole() const { return has_all_columns() && rows.size() == n; }
  int64_t num_elements() const { return rows.size() * columns.size(); }
};

// INVALID_ARGUMENT, naming the dimension, its value and the sizes that would do, for a model that
// does not split into so many ranks and stages, and for a rank outside its group. `num_slots` of a
// layer's experts: of a layout with replicas (expert_layout.h); 0: as many as experts.
absl::Status CheckSplit(const ModelConfig& config, const RankPlace& place, int64_t num_slots = 0);

// Into how many parts experts are cut when nobody says: the smallest number that CheckSplit accepts
// for `size` ranks and whose slices are whole groups of input channels that share a scale
// (`group_size`; 0: there are none). So slices of all experts (1) where they can be cut. Of a dense
// model 1. INVALID_ARGUMENT, naming what is in the way, when no number does.
absl::StatusOr<int> ChooseExpertSize(const ModelConfig& config, int size, int64_t group_size,
                                     int64_t num_slots = 0);

// The functions below REQUIRE a place that CheckSplit accepts.

// `config` with the rank's own num_heads, num_kv_heads and intermediate sizes, and the layers of
// its stage: num_layers, sliding_window and moe->is_moe_layer, where layer 0 is the stage's first.
// The number of experts stays the model's.
ModelConfig RankConfig(const ModelConfig& config, const RankPlace& place);

// The stage's layers. As even as can be, the first stages have one more: the last one has the head.
Range LayersOf(const ModelConfig& config, const RankPlace& place);
// Of `num_slots` slots of each layer's experts. Empty for a dense model.
Range SlotsOf(int64_t num_slots, const RankPlace& place);

Range HeadsOf(const ModelConfig& config, const RankPlace& place);
Range KvHeadsOf(const ModelConfig& config, const RankPlace& place);
Range VocabularyOf(const ModelConfig& config, const RankPlace& place);

// The number of the layer, or expert, that a module or tensor is of: 3 and 7 of
// "model.layers.3.mlp.experts.7.up_proj.weight". nullopt: of none.
std::optional<int64_t> LayerOf(std::string_view name);
std::optional<int64_t> ExpertOf(std::string_view name);

// Whether the place's stage holds a module or tensor: "model.layers.3.input_layernorm", "lm_head".
bool IsOnStage(const ModelConfig& config, const RankPlace& place, std::string_view name);

// The share of a module's weight by its name: "model.layers.3.mlp.up_proj", or the last part of it
// for what is no expert's. "...experts.7.w1" (Mixtral) or "...experts.7.gate_proj": what a rank
// that has the expert holds of it. Whoever asks knows that the stage has the module. nullopt for
// what is no such matrix, which every rank holds whole.
std::optional<MatrixShare> ShareOf(const ModelConfig& config, const RankPlace& place,
                                   std::string_view module);

// Scales of groups of input channels belong to whole groups. INVALID_ARGUMENT, naming the module,
// the slice, the group size and the numbers of ranks that would do, when `share` cuts one.
// `num_slots` as CheckSplit has it.
absl::Status CheckOnGroups(const ModelConfig& config, const RankPlace& place,
                           std::string_view module, const MatrixShare& share, int64_t group_size,
                           int64_t num_slots = 0);
// The same of all experts, before any is read.
absl::Status CheckExpertsOnGroups(const ModelConfig& config, const RankPlace& place,
                                  int64_t group_size, int64_t num_slots = 0);

// The matrix that slices of an expert cut between input channels, of the first expert there is, by
// the architecture's usual names: "model.layers.0.mlp.experts.0.down_proj". REQUIRES experts.
std::string FirstExpertDown(const ModelConfig& config);

}  // namespace nibble::engine
