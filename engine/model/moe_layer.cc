// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/moe_layer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "fmt/ranges.h"

#include "base/check.h"
#include "kernels/activation/silu_mul.h"
#include "kernels/moe/combine.h"
#include "kernels/moe/permute.h"
#include "kernels/moe/route.h"

namespace nibble::engine {
namespace {

// In a fixed order: ranks need not agree on it, but a row must not depend on its batch.
float Dot(const float* a, const float* b, int64_t count) {
  constexpr int64_t kLanes = 16;
  std::array<float, kLanes> sums{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sums[static_cast<size_t>(lane)] += a[i + lane] * b[i + lane];
    }
  }
  float sum = 0.0F;
  for (const float lane : sums) sum += lane;
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// A step of an order-dependent hash (the multiplier is 2^64 / the golden ratio).
uint64_t Mix(uint64_t hash, int32_t id) {
  hash = (hash ^ static_cast<uint32_t>(id)) * 0x9E3779B97F4A7C15;
  return hash ^ (hash >> 32);
}

void AddForms(const auto& linear, ActivationForms* forms) {
  forms->floats = forms->floats || linear.takes_floats();
  forms->int8 = forms->int8 || linear.takes_int8();
}

}  // namespace

ActivationForms MoeWeights::input_forms() const {
  return {.floats = true,  // the router
          .int8 = gate_up.takes_int8() || shared_gate_up.takes_int8(),
          .reordered = shared_gate_up.reorders()};
}

int64_t MoeWeights::size_bytes() const {
  return router.size_bytes() + gate_up.size_bytes() + down.size_bytes() +
         shared_gate_up.size_bytes() + shared_down.size_bytes() +
         static_cast<int64_t>(shared_gate.size() * sizeof(float));
}

bool MoeWeights::reorders() const {
  return gate_up.reorders() || down.reorders() || shared_gate_up.reorders() ||
         shared_down.reorders();
}

MoeLayers::MoeLayers(const ModelConfig& config, const RankPlace& place, const ExpertLayout& layout,
                     std::vector<const MoeWeights*> layers, int64_t first_layer, bool check_routing,
                     Isa isa)
    : hidden_(config.hidden_size),
      num_experts_(config.moe->num_experts),
      top_k_(config.moe->num_experts_per_tok),
      renormalize_(config.moe->norm_topk_prob),
      num_slots_(SlotsOf(layout.num_slots, place).size()),
      first_slot_(SlotsOf(layout.num_slots, place).begin),
      first_layer_(first_layer),
      num_ranks_(place.size),
      expert_size_(place.expert_size),
      check_routing_(check_routing),
      isa_(isa),
      offsets_(static_cast<size_t>(num_slots_) + 1),
      piece_offsets_(offsets_.size()),
      tokens_of_expert_(static_cast<size_t>(num_experts_)),
      load_(config.num_layers, num_experts_),
      hash_of_layer_(layers.size()),
      hashes_of_rank_(layers.size() * static_cast<size_t>(place.size)) {
  NIBBLE_CHECK_LE(num_experts_, kernels::kMaxExperts);
  layers_.resize(layers.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l] == nullptr) continue;
    const MoeWeights& weights = *layers[l];
    NIBBLE_CHECK_EQ(weights.router.n(), num_experts_);
    NIBBLE_CHECK_EQ(weights.gate_up.num_slots(), num_slots_);
    NIBBLE_CHECK_EQ(weights.down.num_slots(), num_slots_);
    NIBBLE_CHECK_EQ(weights.gate_up.n(), 2 * weights.down.k());
    layers_[l].emplace(Layer{.weights = &weights,
                             .slots = SlotTable(layout, first_layer + static_cast<int64_t>(l))});
    max_gate_up_ = std::max(max_gate_up_, weights.gate_up.n());
    max_down_k_ = std::max(max_down_k_, weights.down.k());
    AddForms(weights.down, &down_forms_);
    for (const GroupedLinear* linear : {&weights.gate_up, &weights.down}) {
      if (linear->reorders()) max_reordered_k_ = std::max(max_reordered_k_, linear->k());
    }
    if (!weights.has_shared_expert()) continue;
    max_shared_gate_up_ = std::max(max_shared_gate_up_, weights.shared_gate_up.n());
    max_shared_k_ = std::max(max_shared_k_, weights.shared_down.k());
    AddForms(weights.shared_down, &shared_forms_);
    shared_forms_.reordered = shared_forms_.reordered || weights.shared_down.reorders();
  }
}

int64_t MoeLayers::PieceRows(int64_t num_tokens) const {
  const int64_t num_rows = num_tokens * top_k_;
  return expert_size_ == 1 ? num_rows : (num_rows * 3 / 2 + expert_size_ - 1) / expert_size_;
}

int64_t MoeLayers::BytesFor(int64_t num_tokens) const {
  const int64_t piece_rows = PieceRows(num_tokens);
  const int64_t row_bytes = hidden_ * 4 + 5 * 4;  // and weight, expert, slot, row, token
  const int64_t token_bytes = num_experts_ * 4 + top_k_ * row_bytes +
                              ActivationBuffer::BytesPerRow(max_shared_k_, shared_forms_);
  return num_tokens * token_bytes +
         std::max(piece_rows * max_gate_up_, num_tokens * max_shared_gate_up_) * 4 +
         piece_rows * ActivationBuffer::BytesPerRow(max_down_k_, down_forms_) +
         (max_reordered_k_ > 0 ? piece_rows * QuantizedRowsBuffer::BytesPerRow(max_reordered_k_)
                               : 0);
}

void MoeLayers::Allocate(int64_t num_tokens) {
  const int64_t num_rows = num_tokens * top_k_;
  const auto floats = [](int64_t count) {
    return AlignedBuffer<float>::Zeroed(static_cast<size_t>(count));
  };
  piece_rows_ = PieceRows(num_tokens);
  logits_ = floats(num_tokens * num_experts_);
  weights_ = floats(num_rows);
  for (std::vector<int32_t>* ids : {&expert_ids_, &slot_ids_, &row_of_, &token_of_row_}) {
    ids->resize(static_cast<size_t>(num_rows));
  }
  gate_up_ = floats(std::max(piece_rows_ * max_gate_up_, num_tokens * max_shared_gate_up_));
  down_input_.Allocate(piece_rows_, max_down_k_, down_forms_);
  shared_input_.Allocate(num_tokens, max_shared_k_, shared_forms_);
  expert_out_ = floats(num_rows * hidden_);
  reordered_.Allocate(max_reordered_k_ > 0 ? piece_rows_ : 0, max_reordered_k_);
}

void MoeLayers::BeginStep() { std::fill(hash_of_layer_.begin(), hash_of_layer_.end(), 0); }

void MoeLayers::Run(int64_t layer_idx, const LinearInput& input, const int32_t* positions,
                    int64_t num_tokens, float* out, ThreadPool* pool) {
  const MoeWeights& weights = *layers_[static_cast<size_t>(layer_idx)]->weights;
  Route(layer_idx, input, positions, num_tokens, pool);
  RunExperts(weights, input, pool);
  if (weights.has_shared_expert()) RunShared(weights, input, num_tokens, out, pool);
  kernels::Combine({.num_tokens = num_tokens,
                    .num_experts_per_tok = top_k_,
                    .hidden = hidden_,
                    .weights = weights_.data(),
                    .row_of = row_of_.data(),
                    .y = expert_out_.data(),
                    .y_stride = hidden_,
                    .accumulate = weights.has_shared_expert(),
                    .out = out,
                    .out_stride = hidden_},
                   isa_, pool);
}

void MoeLayers::Route(int64_t layer_idx, const LinearInput& input, const int32_t* positions,
                      int64_t num_tokens, ThreadPool* pool) {
  const MoeWeights& weights = *layers_[static_cast<size_t>(layer_idx)]->weights;
  weights.router.Run(input, num_tokens, logits_.data(), pool);
  kernels::Route({.num_tokens = num_tokens,
                  .num_experts = num_experts_,
                  .num_experts_per_tok = top_k_,
                  .renormalize = renormalize_,
                  .logits = logits_.data(),
                  .expert_ids = expert_ids_.data(),
                  .weights = weights_.data()},
                 isa_, pool);
  ChooseSlots(layer_idx, positions, num_tokens);
  kernels::Permute({.num_tokens = num_tokens,
                    .num_experts_per_tok = top_k_,
                    .slot_ids = slot_ids_.data(),
                    .first_slot = static_cast<int32_t>(first_slot_),
                    .num_slots = static_cast<int32_t>(num_slots_),
                    .offsets = offsets_.data(),
                    .token_of_row = token_of_row_.data(),
                    .row_of = row_of_.data()});
}

void MoeLayers::ChooseSlots(int64_t layer_idx, const int32_t* positions, int64_t num_tokens) {
  const SlotTable& slots = layers_[static_cast<size_t>(layer_idx)]->slots;
  const auto num_ids = static_cast<size_t>(num_tokens * top_k_);
  const auto top_k = static_cast<size_t>(top_k_);
  std::fill(tokens_of_expert_.begin(), tokens_of_expert_.end(), 0);
  for (size_t i = 0; i < num_ids; ++i) {
    slot_ids_[i] = slots.SlotOf(expert_ids_[i], positions[i / top_k]);
    ++tokens_of_expert_[static_cast<size_t>(expert_ids_[i])];
  }
  for (size_t expert = 0; expert < tokens_of_expert_.size(); ++expert) {
    if (tokens_of_expert_[expert] == 0) continue;
    load_.Add(first_layer_ + layer_idx, static_cast<int32_t>(expert), tokens_of_expert_[expert]);
  }
  if (!check_routing_) return;
  uint64_t& hash = hash_of_layer_[static_cast<size_t>(layer_idx)];
  for (size_t i = 0; i < num_ids; ++i) hash = Mix(hash, expert_ids_[i]);
}

void MoeLayers::RunExperts(const MoeWeights& weights, const LinearInput& input, ThreadPool* pool) {
  const int64_t num_rows = offsets_.back();
  for (int64_t first = 0; first < num_rows; first += piece_rows_) {
    RunPiece(weights, input, first, std::min(piece_rows_, num_rows - first), pool);
  }
}

void MoeLayers::RunPiece(const MoeWeights& weights, const LinearInput& input, int64_t first_row,
                         int64_t num_rows, ThreadPool* pool) {
  for (size_t slot = 0; slot < offsets_.size(); ++slot) {
    piece_offsets_[slot] =
        static_cast<int32_t>(std::clamp<int64_t>(offsets_[slot] - first_row, 0, num_rows));
  }
  const auto scratch_for = [this](const GroupedLinear& linear) {
    return linear.reorders() ? reordered_.For(linear.k()) : kernels::QuantizedRows{};
  };
  weights.gate_up.Run({.offsets = piece_offsets_.data(),
                       .a_rows = token_of_row_.data() + first_row,
                       .rows = input,
                       .reordered = scratch_for(weights.gate_up)},
                      gate_up_.data(), pool);
  const int64_t channels = weights.down.k();
  const LinearInput down_input = down_input_.For(
      channels, {.floats = weights.down.takes_floats(), .int8 = weights.down.takes_int8()});
  kernels::SiluMul({.num_rows = num_rows,
                    .intermediate = channels,
                    .gate_up = gate_up_.data(),
                    .gate_up_stride = 2 * channels,
                    .y = down_input.values,
                    .y_stride = down_input.stride,
                    .y8 = down_input.quantized},
                   isa_, pool);
  weights.down.Run({.offsets = piece_offsets_.data(),
                    .rows = down_input,
                    .reordered = scratch_for(weights.down)},
                   expert_out_.data() + first_row * hidden_, pool);
}

// Its gate and up are where the experts' were.
void MoeLayers::RunShared(const MoeWeights& weights, const LinearInput& input, int64_t num_tokens,
                          float* out, ThreadPool* pool) {
  weights.shared_gate_up.Run(input, num_tokens, gate_up_.data(), pool);
  const int64_t channels = weights.shared_down.k();
  const LinearInput down_input = shared_input_.For(weights.shared_down);
  kernels::SiluMul({.num_rows = num_tokens,
                    .intermediate = channels,
                    .gate_up = gate_up_.data(),
                    .gate_up_stride = 2 * channels,
                    .y = down_input.values,
                    .y_stride = down_input.stride,
                    .y8 = down_input.quantized},
                   isa_, pool);
  weights.shared_down.Run(down_input, num_tokens, out, pool);
  pool->ParallelFor(num_tokens, 1, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const float logit =
          Dot(input.values + token * input.stride, weights.shared_gate.data(), hidden_);
      const float gate = 1.0F / (1.0F + std::exp(-logit));
      float* const row = out + token * hidden_;
      for (int64_t c = 0; c < hidden_; ++c) row[c] *= gate;
    }
  });
}

absl::Status MoeLayers::CheckRouting(comm::Communicator* communicator) {
  if (!check_routing_ || num_ranks_ == 1) return absl::OkStatus();
  const size_t num_layers = hash_of_layer_.size();
  NIBBLE_RETURN_IF_ERROR(communicator->AllGather(
      hash_of_layer_.data(), num_layers * sizeof(uint64_t), hashes_of_rank_.data()));
  for (size_t l = 0; l < num_layers; ++l) {
    std::vector<size_t> others;
    for (size_t rank = 1; rank < static_cast<size_t>(num_ranks_); ++rank) {
      if (hashes_of_rank_[rank * num_layers + l] != hashes_of_rank_[l]) others.push_back(rank);
    }
    if (others.empty()) continue;
    // Later layers got wrong sums from this one.
    return Internal(
        "layer {}: tensor-parallel rank(s) {} of {} route tokens to other experts than rank 0",
        first_layer_ + static_cast<int64_t>(l), fmt::join(others, ", "), num_ranks_);
  }
  return absl::OkStatus();
}

}  // namespace nibble::engine
