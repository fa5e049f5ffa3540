// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Layers with experts against the formula, whole and in shares of any shape.

#include "engine/model/moe_layer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/group.h"
#include "kernels/quant/rtn.h"
#include "tests/engine/model/differences.h"
#include "tests/engine/model/model_runner.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using testing::SameBits;

constexpr int64_t kHidden = 128;
constexpr int64_t kExperts = 8;
constexpr int64_t kTopK = 2;
constexpr int64_t kChannels = 256;  // of an expert: two groups of 128
constexpr int64_t kShared = 640;    // of the shared expert: more than a token's experts have
constexpr int64_t kFirstLayer = 3;  // of the model, the only one of the stage

ModelConfig Config(bool has_shared_expert, bool norm_topk_prob = true) {
  ModelConfig config;
  config.architecture = Architecture::kQwen2Moe;
  config.hidden_size = kHidden;
  config.num_layers = kFirstLayer + 1;
  config.num_heads = 8;
  config.num_kv_heads = 8;
  config.head_dim = 16;
  config.vocab_size = 64;
  config.moe = MoeConfig{.num_experts = kExperts,
                         .num_experts_per_tok = kTopK,
                         .intermediate_size = kChannels,
                         .norm_topk_prob = norm_topk_prob,
                         .shared_expert_intermediate_size = has_shared_expert ? kShared : 0,
                         .is_moe_layer = std::vector<bool>(kFirstLayer + 1, true)};
  return config;
}

struct Mlp {
  std::vector<float> gate;  // [channels, kHidden]
  std::vector<float> up;
  std::vector<float> down;  // [kHidden, channels]

  static Mlp Make(int64_t channels, testing::Random* random) {
    return {random->Normals(channels * kHidden, 0.1F), random->Normals(channels * kHidden, 0.1F),
            random->Normals(channels * kHidden, 0.1F)};
  }
};

struct Layer {
  std::vector<float> router;  // [kExperts, kHidden]
  std::vector<Mlp> experts;
  Mlp shared;
  std::vector<float> shared_gate;  // [kHidden], or empty

  explicit Layer(bool has_shared_expert) {
    testing::Random random(23);
    router = random.Normals(kExperts * kHidden, 0.1F);
    for (int64_t e = 0; e < kExperts; ++e) experts.push_back(Mlp::Make(kChannels, &random));
    if (!has_shared_expert) return;
    shared = Mlp::Make(kShared, &random);
    shared_gate = random.Normals(kHidden, 0.1F);
  }
};

double Dot(const float* a, const float* b, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

void AddMlp(const Mlp& mlp, const float* x, double weight, std::vector<double>* out) {
  const auto channels = static_cast<int64_t>(mlp.gate.size()) / kHidden;
  std::vector<double> inner(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) {
    const double gate = Dot(mlp.gate.data() + c * kHidden, x, kHidden);
    inner[static_cast<size_t>(c)] =
        gate * Sigmoid(gate) * Dot(mlp.up.data() + c * kHidden, x, kHidden);
  }
  for (int64_t h = 0; h < kHidden; ++h) {
    double sum = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
      sum += inner[static_cast<size_t>(c)] *
             static_cast<double>(mlp.down[static_cast<size_t>(h * channels + c)]);
    }
    (*out)[static_cast<size_t>(h)] += weight * sum;
  }
}

// The equation, in double: softmax, the k largest, their experts, the shared one.
std::vector<float> Formula(const Layer& layer, bool norm_topk_prob, const std::vector<float>& x) {
  std::vector<float> result;
  for (size_t token = 0; token * kHidden < x.size(); ++token) {
    const float* const row = x.data() + token * kHidden;
    std::vector<double> p;
    for (int64_t e = 0; e < kExperts; ++e) {
      p.push_back(std::exp(Dot(layer.router.data() + e * kHidden, row, kHidden)));
    }
    std::vector<size_t> order(kExperts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
    double sum = 0.0;
    const size_t num_terms = norm_topk_prob ? kTopK : kExperts;
    for (size_t j = 0; j < num_terms; ++j) sum += p[order[j]];
    std::vector<double> out(kHidden, 0.0);
    for (size_t j = 0; j < kTopK; ++j) {
      AddMlp(layer.experts[order[j]], row, p[order[j]] / sum, &out);
    }
    if (!layer.shared_gate.empty()) {
      AddMlp(layer.shared, row, Sigmoid(Dot(layer.shared_gate.data(), row, kHidden)), &out);
    }
    result.insert(result.end(), out.begin(), out.end());
  }
  return result;
}

enum class Form { kFloat, kInt4 };

// Rows [begin, end) of an [n, k] matrix, or columns, packed.
Linear::Part Pack(const std::vector<float>& matrix, int64_t k, Range rows, Range columns, Form form,
                  Isa isa, ThreadPool* pool) {
  std::vector<float> part;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    part.insert(part.end(), matrix.begin() + row * k + columns.begin,
                matrix.begin() + row * k + columns.end);
  }
  if (form == Form::kInt4) {
    auto weight = kernels::QuantizeRtn(part.data(), rows.size(), columns.size(), {}, pool);
    EXPECT_TRUE(weight.ok()) << weight.status();
    auto packed = kernels::PackInt4(*weight, kernels::ScaleForm::kFolded, isa, pool);
    EXPECT_TRUE(packed.ok()) << packed.status();
    return {*std::move(packed), {}};
  }
  auto packed = kernels::PackDense(part.data(), DType::kF32, rows.size(), columns.size(),
                                   DType::kF32, isa, pool);
  EXPECT_TRUE(packed.ok()) << packed.status();
  return {*std::move(packed), {}};
}

Linear GateUp(const Mlp& mlp, Range channels, Form form, Isa isa, ThreadPool* pool) {
  std::vector<Linear::Part> parts;
  for (const std::vector<float>* half : {&mlp.gate, &mlp.up}) {
    parts.push_back(Pack(*half, kHidden, channels, {0, kHidden}, form, isa, pool));
  }
  return Linear(std::move(parts), {});
}

Linear Down(const Mlp& mlp, Range channels, Form form, Isa isa, ThreadPool* pool) {
  const auto k = static_cast<int64_t>(mlp.gate.size()) / kHidden;
  std::vector<Linear::Part> parts;
  parts.push_back(Pack(mlp.down, k, {0, kHidden}, channels, form, isa, pool));
  return Linear(std::move(parts), {});
}

MoeWeights Share(const Layer& layer, const RankPlace& place, const ExpertLayout& layout, Form form,
                 Isa isa, ThreadPool* pool) {
  const auto part_of = [](int64_t count, int part, int parts) {
    return Range{part * count / parts, (part + 1) * count / parts};
  };
  MoeWeights weights;
  std::vector<Linear::Part> router;
  router.push_back(
      Pack(layer.router, kHidden, {0, kExperts}, {0, kHidden}, Form::kFloat, isa, pool));
  weights.router = Linear(std::move(router), {});
  const Range channels = part_of(kChannels, place.moe_tp_rank(), place.moe_tp_size());
  const Range slots = part_of(layout.num_slots, place.expert_rank(), place.expert_size);
  std::vector<Linear> gate_up;
  std::vector<Linear> down;
  for (int64_t slot = slots.begin; slot < slots.end; ++slot) {
    const int32_t expert =
        layout.expert_of_slot[static_cast<size_t>(kFirstLayer * layout.num_slots + slot)];
    const Mlp& mlp = layer.experts[static_cast<size_t>(expert)];
    gate_up.push_back(GateUp(mlp, channels, form, isa, pool));
    down.push_back(Down(mlp, channels, form, isa, pool));
  }
  weights.gate_up = GroupedLinear(std::move(gate_up));
  weights.down = GroupedLinear(std::move(down));
  if (layer.shared_gate.empty()) return weights;
  // The other form, so that both are written.
  const Range shared = part_of(kShared, place.rank, place.size);
  weights.shared_gate_up = GateUp(layer.shared, shared, Form::kFloat, isa, pool);
  weights.shared_down = Down(layer.shared, shared, Form::kFloat, isa, pool);
  weights.shared_gate = layer.shared_gate;
  return weights;
}

// One rank's layer, and the input that the norm before it would write.
class Rank {
 public:
  Rank(const Layer& layer, const RankPlace& place, const ExpertLayout& layout, Form form, Isa isa,
       bool norm_topk_prob = true, bool check_routing = false)
      : pool_(2),
        isa_(isa),
        weights_(Share(layer, place, layout, form, isa, &pool_)),
        layers_(Config(!layer.shared_gate.empty(), norm_topk_prob), place, layout, {&weights_},
                kFirstLayer, check_routing, isa) {}

  std::vector<float> Run(const std::vector<float>& x, const std::vector<int32_t>& positions) {
    const auto num_tokens = static_cast<int64_t>(positions.size());
    layers_.Allocate(num_tokens);
    activations_.Allocate(num_tokens, kHidden, weights_.input_forms());
    const LinearInput input = activations_.For(kHidden, weights_.input_forms());
    std::copy(x.begin(), x.end(), input.values);
    if (input.quantized.values != nullptr) {
      kernels::QuantizeRows(x.data(), kHidden, num_tokens, kHidden, input.quantized, isa_, &pool_);
    }
    std::vector<float> out(x.size(), -7.0F);
    layers_.BeginStep();
    layers_.Run(0, input, positions.data(), num_tokens, out.data(), &pool_);
    return out;
  }

  MoeLayers& layers() { return layers_; }

 private:
  ThreadPool pool_;
  Isa isa_;
  MoeWeights weights_;
  MoeLayers layers_;
  ActivationBuffer activations_;
};

std::vector<int32_t> Positions(int64_t count) {
  std::vector<int32_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), 5);
  return positions;
}

std::vector<float> Tokens(int64_t count) {
  testing::Random random(31);
  return random.Normals(count * kHidden);
}

Isa BestIsa() { return testing::HostIsas().back(); }
ExpertLayout Uniform() { return ExpertLayout::Uniform(kFirstLayer + 1, kExperts); }

// Experts 2 and 5 have three and two copies, the slots are in no order.
ExpertLayout Replicated() {
  ExpertLayout layout{.num_experts = kExperts, .num_slots = 12, .expert_of_slot = {}};
  const std::vector<int32_t> slots = {5, 2, 0, 1, 2, 7, 6, 3, 4, 2, 5, 1};
  for (int64_t l = 0; l <= kFirstLayer; ++l) {
    layout.expert_of_slot.insert(layout.expert_of_slot.end(), slots.begin(), slots.end());
  }
  EXPECT_TRUE(CheckExpertLayout(layout, kFirstLayer + 1, kExperts, 4).ok());
  return layout;
}

struct Shape {
  int size = 1;
  int expert_size = 1;
};

std::vector<float> SumOverRanks(const Layer& layer, const Shape& shape, const ExpertLayout& layout,
                                Form form, const std::vector<float>& x,
                                const std::vector<int32_t>& positions) {
  std::vector<float> sum(x.size(), 0.0F);
  for (int rank = 0; rank < shape.size; ++rank) {
    Rank own(layer, {.rank = rank, .size = shape.size, .expert_size = shape.expert_size}, layout,
             form, BestIsa());
    const std::vector<float> part = own.Run(x, positions);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  return sum;
}

class MoeLayerTest : public ::testing::TestWithParam<Isa> {};

// Sums of 128 and 640 products in float: sqrt(768) roundings of 6e-8 are 1.7e-6 of the largest;
// five times that.
TEST_P(MoeLayerTest, OneRankIsTheFormula) {
  const std::vector<float> x = Tokens(11);
  for (const bool has_shared_expert : {false, true}) {
    const Layer layer(has_shared_expert);
    for (const bool norm_topk_prob : {true, false}) {
      Rank rank(layer, {}, Uniform(), Form::kFloat, GetParam(), norm_topk_prob);
      const std::vector<float> got = rank.Run(x, Positions(11));
      EXPECT_LE(testing::Compare(got, Formula(layer, norm_topk_prob, x)).worst, 8e-6)
          << has_shared_expert << norm_topk_prob;
    }
  }
}

TEST_P(MoeLayerTest, ATokenHasTheSameBitsAlone) {
  const std::vector<float> x = Tokens(11);
  for (const Form form : {Form::kFloat, Form::kInt4}) {
    const Layer layer(true);
    Rank rank(layer, {}, Replicated(), form, GetParam());
    const std::vector<float> together = rank.Run(x, Positions(11));
    for (int32_t token = 0; token < 11; ++token) {
      const auto row_of = [token](const std::vector<float>& rows) {
        return std::vector<float>(rows.begin() + token * kHidden,
                                  rows.begin() + (token + 1) * kHidden);
      };
      EXPECT_TRUE(SameBits(rank.Run(row_of(x), {5 + token}), row_of(together))) << token;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, MoeLayerTest, ::testing::ValuesIn(testing::HostIsas()),
                         testing::IsaName);

TEST(MoeLayerRanksTest, PartsSumToTheWhole) {
  const std::vector<float> x = Tokens(11);
  const std::vector<int32_t> positions = Positions(11);
  for (const bool has_shared_expert : {false, true}) {
    const Layer layer(has_shared_expert);
    const std::vector<float> want = Formula(layer, true, x);
    for (const Shape& shape :
         std::vector<Shape>{{2, 1}, {2, 2}, {4, 1}, {4, 4}, {4, 2}, {8, 8}, {8, 4}, {8, 1}}) {
      const std::vector<float> got =
          SumOverRanks(layer, shape, Uniform(), Form::kFloat, x, positions);
      EXPECT_LE(testing::Compare(got, want).worst, 8e-6) << shape.size << "/" << shape.expert_size;
    }
    for (const Shape& shape : std::vector<Shape>{{1, 1}, {2, 2}, {4, 4}, {4, 2}}) {
      const std::vector<float> got =
          SumOverRanks(layer, shape, Replicated(), Form::kFloat, x, positions);
      EXPECT_LE(testing::Compare(got, want).worst, 8e-6)
          << "copies " << shape.size << "/" << shape.expert_size;
    }
  }
}

// Whole experts are the same codes on any rank; slices quantize their activations by themselves,
// so they differ by as much as rounding to eight bits does.
TEST(MoeLayerRanksTest, Int4PartsSumToTheWhole) {
  const std::vector<float> x = Tokens(11);
  const std::vector<int32_t> positions = Positions(11);
  const Layer layer(true);
  const std::vector<float> want = SumOverRanks(layer, {}, Uniform(), Form::kInt4, x, positions);
  EXPECT_LE(testing::Compare(want, Formula(layer, true, x)).relative, 0.15);  // what rounding costs
  for (const Shape& shape : std::vector<Shape>{{2, 2}, {4, 4}, {8, 8}}) {
    const std::vector<float> got = SumOverRanks(layer, shape, Uniform(), Form::kInt4, x, positions);
    EXPECT_LE(testing::Compare(got, want).worst, 2e-6) << shape.size;
  }
  EXPECT_LE(
      testing::Compare(SumOverRanks(layer, {4, 4}, Replicated(), Form::kInt4, x, positions), want)
          .worst,
      2e-6);
}

// Every token to experts 5 and 2: one rank has all the work, one half of it, two have none.
TEST(MoeLayerRanksTest, RanksWithoutTokensGiveZeros) {
  Layer layer(false);
  std::vector<float> x = Tokens(33);
  for (size_t token = 0; token < 33; ++token) x[token * kHidden] = 4.0F;
  for (int64_t e = 0; e < kExperts; ++e) {
    layer.router[static_cast<size_t>(e * kHidden)] = e == 5 ? 20.0F : e == 2 ? 15.0F : -20.0F;
  }
  const std::vector<float> want = Formula(layer, true, x);
  std::vector<float> sum(x.size(), 0.0F);
  for (int r = 0; r < 4; ++r) {
    Rank rank(layer, {.rank = r, .size = 4, .expert_size = 4}, Uniform(), Form::kFloat, BestIsa());
    const std::vector<float> part = rank.Run(x, Positions(33));
    const bool has_none =
        std::all_of(part.begin(), part.end(), [](float value) { return value == 0.0F; });
    EXPECT_EQ(has_none, r == 0 || r == 3) << r;  // experts 0, 1 and 6, 7
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    // A rank works in pieces of less than its rows here: no bit of a token tells.
    Rank alone(layer, {.rank = r, .size = 4, .expert_size = 4}, Uniform(), Form::kFloat, BestIsa());
    for (int32_t token = 0; token < 33; ++token) {
      const auto row_of = [token](const std::vector<float>& rows) {
        return std::vector<float>(rows.begin() + token * kHidden,
                                  rows.begin() + (token + 1) * kHidden);
      };
      EXPECT_TRUE(SameBits(alone.Run(row_of(x), {5 + token}), row_of(part))) << r << ": " << token;
    }
    // Counted on every rank, whoever computes them.
    const ExpertLoad load = rank.layers().load();
    for (int64_t l = 0; l <= kFirstLayer; ++l) {
      for (int64_t e = 0; e < kExperts; ++e) {
        EXPECT_EQ(load.at(l, e), l == kFirstLayer && (e == 5 || e == 2) ? 33U : 0U);
      }
    }
  }
  EXPECT_LE(testing::Compare(sum, want).worst, 8e-6);
}

// Tokens of an expert with copies go to one of these by their own position: with another one,
// some go to other ranks.
TEST(MoeLayerRanksTest, CopiesShareTheTokens) {
  const Layer layer(false);
  const std::vector<float> x = Tokens(24);
  for (int r = 0; r < 4; ++r) {
    Rank rank(layer, {.rank = r, .size = 4, .expert_size = 4}, Replicated(), Form::kFloat,
              BestIsa());
    const std::vector<float> part = rank.Run(x, Positions(24));
    // Slots 0, 1, 4, 9 and 10, on ranks 0, 1 and 3, have the copies of experts 2 and 5.
    EXPECT_EQ(SameBits(rank.Run(x, std::vector<int32_t>(24, 5)), part), r == 2) << r;
    for (int32_t token = 0; token < 24; ++token) {
      const auto row_of = [token](const std::vector<float>& rows) {
        return std::vector<float>(rows.begin() + token * kHidden,
                                  rows.begin() + (token + 1) * kHidden);
      };
      EXPECT_TRUE(SameBits(rank.Run(row_of(x), {5 + token}), row_of(part))) << r << ": " << token;
    }
  }
}

TEST(MoeLayerRanksTest, NotANumberStaysInItsRow) {
  const Layer layer(true);
  std::vector<float> x = Tokens(9);
  Rank rank(layer, {}, Uniform(), Form::kInt4, BestIsa());
  const std::vector<float> want = rank.Run(x, Positions(9));
  std::fill_n(x.begin() + 4 * kHidden, kHidden, NAN);
  std::vector<float> got = rank.Run(x, Positions(9));
  EXPECT_TRUE(std::isnan(got[4 * kHidden]));
  std::copy_n(want.begin() + 4 * kHidden, kHidden, got.begin() + 4 * kHidden);
  EXPECT_TRUE(SameBits(got, want));
}

TEST(MoeLayerRanksTest, RoutingIsCompared) {
  const Layer layer(false);
  auto group = comm::MakeThreadGroup(2, {.mode = comm::AllReduceOptions::Mode::kNone});
  ASSERT_TRUE(group.ok()) << group.status();
  for (const bool same : {true, false}) {
    std::vector<absl::Status> statuses(2);
    std::vector<std::thread> threads;
    for (size_t r = 0; r < 2; ++r) {
      threads.emplace_back([&, r] {
        std::vector<float> x = Tokens(9);
        // Tokens 0 and 1 change places.
        if (!same && r == 1) std::swap_ranges(x.begin(), x.begin() + kHidden, x.begin() + kHidden);
        Rank own(layer, {.rank = static_cast<int>(r), .size = 2, .expert_size = 2}, Uniform(),
                 Form::kFloat, BestIsa(), true, true);
        own.Run(x, Positions(9));
        statuses[r] = own.layers().CheckRouting((*group)[r].get());
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& status : statuses) {
      if (same) {
        EXPECT_TRUE(status.ok()) << status;
      } else {
        EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
        EXPECT_THAT(std::string(status.message()),
                    ::testing::HasSubstr("layer 3: tensor-parallel rank(s) 1 of 2"));
      }
    }
  }
}

}  // namespace
}  // namespace nibble::engine
