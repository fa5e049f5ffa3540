// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/moe_rig.h"

#include <random>
#include <utility>

#include "bench/layer_rig.h"
#include "bench/timing.h"
#include "kernels/activation/silu_mul.h"
#include "kernels/moe/combine.h"
#include "kernels/moe/permute.h"
#include "kernels/moe/route.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::bench {
namespace {

constexpr size_t kNumInputs = 16;

// In -1..1; std::uniform_real_distribution differs between libraries.
void FillRandom(std::mt19937* bits, float* values, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>((*bits)() >> 8) * 0x1p-23F - 1.0F;
  }
}

absl::StatusOr<engine::Linear> MakeRouter(const MoeShape& shape, uint32_t seed, Isa isa,
                                          ThreadPool* pool) {
  std::vector<float> values(static_cast<size_t>(shape.num_experts * shape.hidden_size));
  std::mt19937 bits(seed);
  FillRandom(&bits, values.data(), values.size());
  std::vector<engine::Linear::Part> parts(1);
  NIBBLE_ASSIGN_OR_RETURN(parts[0].weight,
                          kernels::PackDense(values.data(), DType::kF32, shape.num_experts,
                                             shape.hidden_size, DType::kF32, isa, pool));
  return engine::Linear(std::move(parts), {});
}

engine::ModelConfig Config(const MoeShape& shape, int64_t num_layers) {
  engine::ModelConfig config;
  config.hidden_size = shape.hidden_size;
  config.num_layers = num_layers;
  config.moe.emplace();
  config.moe->num_experts = shape.num_experts;
  config.moe->num_experts_per_tok = shape.num_experts_per_tok;
  config.moe->intermediate_size = shape.intermediate_size;
  config.moe->norm_topk_prob = shape.norm_topk_prob;
  config.moe->is_moe_layer.assign(static_cast<size_t>(num_layers), true);
  return config;
}

}  // namespace

std::string_view ToString(MoeOp op) {
  constexpr std::string_view kNames[kNumMoeOps] = {"router", "route", "permute", "combine"};
  return kNames[static_cast<size_t>(op)];
}

absl::StatusOr<std::unique_ptr<MoeRig>> MoeRig::Create(const MoeShape& shape,
                                                       const WeightKind& kind,
                                                       int64_t rotated_bytes, Isa isa,
                                                       ThreadPool* pool) {
  std::unique_ptr<MoeRig> rig(new MoeRig(shape, isa, pool));
  NIBBLE_RETURN_IF_ERROR(rig->MakeWeights(kind, rotated_bytes));
  std::vector<const engine::MoeWeights*> layers;
  for (const engine::MoeWeights& layer : rig->layers_) layers.push_back(&layer);
  const int64_t num_layers = rig->num_layers();
  rig->moe_.emplace(Config(shape, num_layers), engine::RankPlace{},
                    engine::ExpertLayout::Uniform(num_layers, shape.num_experts), std::move(layers),
                    0, /*check_routing=*/false, isa);
  return rig;
}

absl::Status MoeRig::MakeWeights(const WeightKind& kind, int64_t rotated_bytes) {
  const int64_t h = shape_.hidden_size;
  const auto make_experts = [&](int64_t n, int64_t k) -> absl::StatusOr<engine::GroupedLinear> {
    std::vector<engine::Linear> slots(static_cast<size_t>(shape_.num_experts));
    for (engine::Linear& slot : slots) {
      NIBBLE_ASSIGN_OR_RETURN(slot, MakeRandomLinear(kind, n, k, isa_, pool_));
    }
    return engine::GroupedLinear(std::move(slots));
  };
  for (int64_t bytes = 0; bytes < rotated_bytes; bytes += layers_.back().size_bytes()) {
    engine::MoeWeights layer;
    const auto seed = static_cast<uint32_t>(layers_.size() + 1);
    NIBBLE_ASSIGN_OR_RETURN(layer.router, MakeRouter(shape_, seed, isa_, pool_));
    NIBBLE_ASSIGN_OR_RETURN(layer.gate_up, make_experts(2 * shape_.intermediate_size, h));
    NIBBLE_ASSIGN_OR_RETURN(layer.down, make_experts(h, shape_.intermediate_size));
    layers_.push_back(std::move(layer));
  }
  const int64_t active = shape_.num_experts_per_tok * shape_.intermediate_size;
  for (int64_t bytes = 0; bytes < rotated_bytes; bytes += dense_.back().size_bytes()) {
    DenseFeedForward layer;
    NIBBLE_ASSIGN_OR_RETURN(layer.gate_up, MakeRandomLinear(kind, 2 * active, h, isa_, pool_));
    NIBBLE_ASSIGN_OR_RETURN(layer.down, MakeRandomLinear(kind, h, active, isa_, pool_));
    dense_.push_back(std::move(layer));
  }
  return absl::OkStatus();
}

void MoeRig::Prepare(int64_t num_tokens) {
  const auto floats = [](int64_t count) {
    return AlignedBuffer<float>::Zeroed(static_cast<size_t>(count));
  };
  const int64_t h = shape_.hidden_size;
  const int64_t k = shape_.num_experts_per_tok;
  const int64_t active = k * shape_.intermediate_size;
  num_tokens_ = num_tokens;
  moe_->Allocate(num_tokens);
  const engine::ActivationForms forms = layers_[0].input_forms();
  std::mt19937 bits(static_cast<uint32_t>(num_tokens));
  inputs_.resize(kNumInputs);
  for (engine::ActivationBuffer& buffer : inputs_) {
    buffer.Allocate(num_tokens, h, forms);
    const engine::LinearInput input = buffer.For(h, forms);
    for (int64_t t = 0; t < num_tokens; ++t) {
      FillRandom(&bits, input.values + t * input.stride, static_cast<size_t>(h));
    }
    if (!forms.int8) continue;
    kernels::QuantizeRows(input.values, input.stride, num_tokens, h, input.quantized, isa_, pool_);
  }
  positions_.assign(static_cast<size_t>(num_tokens), 0);
  gate_up_ = floats(num_tokens * 2 * active);
  down_.Allocate(num_tokens, active,
                 {.floats = dense_[0].down.takes_floats(), .int8 = dense_[0].down.takes_int8()});
  out_ = floats(num_tokens * h);
  logits_ = floats(num_tokens * shape_.num_experts);
  weights_ = floats(num_tokens * k);
  expert_out_ = floats(num_tokens * k * h);
  for (std::vector<int32_t>* ids : {&expert_ids_, &row_of_, &token_of_row_}) {
    ids->assign(static_cast<size_t>(num_tokens * k), 0);
  }
  offsets_.assign(static_cast<size_t>(shape_.num_experts) + 1, 0);
  last_load_ = moe_->load();
}

int64_t MoeRig::expert_bytes() const {
  return (layers_[0].gate_up.size_bytes() + layers_[0].down.size_bytes()) / shape_.num_experts;
}

engine::LinearInput MoeRig::Input(int64_t run) {
  return inputs_[static_cast<size_t>(run) % kNumInputs].For(shape_.hidden_size,
                                                            layers_[0].input_forms());
}

int64_t MoeRig::CountHit() {
  engine::ExpertLoad load = moe_->load();
  int64_t hit = 0;
  for (size_t i = 0; i < load.tokens.size(); ++i) {
    if (load.tokens[i] != last_load_.tokens[i]) ++hit;
  }
  last_load_ = std::move(load);
  return hit;
}

double MoeRig::RunMoe(int64_t* experts_hit) {
  const int64_t run = num_moe_runs_++;
  const engine::LinearInput input = Input(run);
  const double seconds = Seconds([&] {
    moe_->Run(run % num_layers(), input, positions_.data(), num_tokens_, out_.data(), pool_);
  });
  *experts_hit = CountHit();
  return seconds;
}

double MoeRig::RunDense() {
  const int64_t run = num_dense_runs_++;
  const engine::LinearInput input = Input(run);
  const DenseFeedForward& layer = dense_[static_cast<size_t>(run % num_dense())];
  const int64_t active = layer.down.k();
  const engine::LinearInput down_input = down_.For(layer.down);
  return Seconds([&] {
    layer.gate_up.Run(input, num_tokens_, gate_up_.data(), pool_);
    kernels::SiluMul({.num_rows = num_tokens_,
                      .intermediate = active,
                      .gate_up = gate_up_.data(),
                      .gate_up_stride = 2 * active,
                      .y = down_input.values,
                      .y_stride = down_input.stride,
                      .y8 = down_input.quantized},
                     isa_, pool_);
    layer.down.Run(down_input, num_tokens_, out_.data(), pool_);
  });
}

std::array<double, kNumMoeOps> MoeRig::RunOps() {
  const int64_t run = num_op_runs_++;
  const engine::LinearInput input = Input(run);
  const int64_t k = shape_.num_experts_per_tok;
  std::array<double, kNumMoeOps> seconds = {};
  const auto time = [&](MoeOp op, const auto& body) {
    // In a layer the pool's threads come from a product, or go to one: they do not sleep.
    pool_->ParallelFor(pool_->num_threads(), 1, [](int64_t, int64_t) {});
    seconds[static_cast<size_t>(op)] = Seconds(body);
  };
  time(MoeOp::kRouter, [&] {
    const engine::Linear& router = layers_[static_cast<size_t>(run % num_layers())].router;
    router.Run(input, num_tokens_, logits_.data(), pool_);
  });
  time(MoeOp::kRoute, [&] {
    kernels::Route({.num_tokens = num_tokens_,
                    .num_experts = shape_.num_experts,
                    .num_experts_per_tok = k,
                    .renormalize = shape_.norm_topk_prob,
                    .logits = logits_.data(),
                    .expert_ids = expert_ids_.data(),
                    .weights = weights_.data()},
                   isa_, pool_);
  });
  time(MoeOp::kPermute, [&] {
    kernels::Permute({.num_tokens = num_tokens_,
                      .num_experts_per_tok = k,
                      .slot_ids = expert_ids_.data(),
                      .first_slot = 0,
                      .num_slots = static_cast<int32_t>(shape_.num_experts),
                      .offsets = offsets_.data(),
                      .token_of_row = token_of_row_.data(),
                      .row_of = row_of_.data()});
  });
  time(MoeOp::kCombine, [&] {
    kernels::Combine({.num_tokens = num_tokens_,
                      .num_experts_per_tok = k,
                      .hidden = shape_.hidden_size,
                      .weights = weights_.data(),
                      .row_of = row_of_.data(),
                      .y = expert_out_.data(),
                      .y_stride = shape_.hidden_size,
                      .out = out_.data(),
                      .out_stride = shape_.hidden_size},
                     isa_, pool_);
  });
  return seconds;
}

}  // namespace nibble::bench
