// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From tensors to the experts of a rank: names, shares, what is read, what is refused. The forms of
// quantizers' files are in quantized_checkpoints_test.cc.

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/compressed_tensors.h"
#include "engine/model/expert_loader.h"
#include "engine/model/model.h"
#include "engine/model/weight_loader.h"
#include "kernels/quant/rtn.h"
#include "tests/engine/model/model_runner.h"
#include "tests/engine/model/tiny_checkpoint.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;
using testing::TinyCheckpoint;
using testing::TinyTensor;

constexpr int64_t kExperts = 4;
constexpr int64_t kHidden = TinyCheckpoint::kHidden;
constexpr int64_t kIntermediate = TinyCheckpoint::kIntermediate;
const std::vector<int32_t> kIds = {3, 14, 15, 92, 6, 53, 58, 9, 79, 32, 38, 46};

// Heads for four ranks, `num_layers` layers of experts.
TinyCheckpoint WithExperts(int64_t num_layers = 2, int64_t num_experts = kExperts) {
  TinyCheckpoint tiny(num_layers);
  tiny.config["num_attention_heads"] = 4;
  tiny.config["num_key_value_heads"] = 2;
  tiny.config["head_dim"] = 32;
  tiny.UseExperts(num_experts, 2);
  return tiny;
}

std::string Block(int64_t layer) { return fmt::format("model.layers.{}.block_sparse_moe.", layer); }

void Rename(TinyCheckpoint* tiny, const std::string& from, const std::string& to) {
  tiny->tensors[to] = std::move(tiny->tensors.at(from));
  tiny->tensors.erase(from);
}

// Qwen's names for the same tensors.
void UseProjectionNames(TinyCheckpoint* tiny, int64_t layer) {
  const std::string mlp = fmt::format("model.layers.{}.mlp.", layer);
  Rename(tiny, Block(layer) + "gate.weight", mlp + "gate.weight");
  for (int64_t e = 0; e < kExperts; ++e) {
    const std::string expert = fmt::format("experts.{}.", e);
    Rename(tiny, Block(layer) + expert + "w1.weight", mlp + expert + "gate_proj.weight");
    Rename(tiny, Block(layer) + expert + "w3.weight", mlp + expert + "up_proj.weight");
    Rename(tiny, Block(layer) + expert + "w2.weight", mlp + expert + "down_proj.weight");
  }
}

// All experts in one tensor.
void Fuse(TinyCheckpoint* tiny, int64_t layer, const std::string& block) {
  TinyTensor gate_up{.shape = {kExperts, 2 * kIntermediate, kHidden}};
  TinyTensor down{.shape = {kExperts, kHidden, kIntermediate}};
  for (int64_t e = 0; e < kExperts; ++e) {
    const std::string expert = fmt::format("{}experts.{}.", Block(layer), e);
    const auto append = [&](const char* name, TinyTensor* to) {
      const std::vector<float>& values = tiny->tensors.at(expert + name).values;
      to->values.insert(to->values.end(), values.begin(), values.end());
      tiny->tensors.erase(expert + name);
    };
    append("w1.weight", &gate_up);
    append("w3.weight", &gate_up);
    append("w2.weight", &down);
  }
  const TinyTensor router = tiny->tensors.at(Block(layer) + "gate.weight");
  tiny->tensors.erase(Block(layer) + "gate.weight");
  const std::string to = fmt::format("model.layers.{}.{}.", layer, block);
  tiny->tensors[to + "gate.weight"] = router;
  tiny->tensors[to + "experts.gate_up_proj"] = std::move(gate_up);
  tiny->tensors[to + "experts.down_proj"] = std::move(down);
}

std::vector<float> Logits(const std::string& dir, Quantization quantization) {
  ThreadPool pool(2);
  const auto model = testing::LoadOrFail(
      dir, {.quantization = quantization, .isa = testing::HostIsas().back()}, &pool);
  if (model == nullptr) return {};
  testing::ModelRunner runner(model.get(), 8, &pool);
  return runner.Prefill(kIds, 1000);
}

TEST(ExpertLoadingTest, AllNamesGiveTheSameBits) {
  const TinyCheckpoint hub = WithExperts();
  TinyCheckpoint projections = hub;
  TinyCheckpoint fused = hub;
  TinyCheckpoint mixed = hub;
  for (const int64_t layer : {0, 1}) UseProjectionNames(&projections, layer);
  for (const int64_t layer : {0, 1}) Fuse(&fused, layer, "mlp");
  Fuse(&mixed, 1, "block_sparse_moe");
  const std::string dir = hub.Write("experts_hub");
  const std::pair<std::string, std::string> others[] = {
      {"projections", projections.Write("experts_projections")},
      {"fused", fused.Write("experts_fused")},
      {"one of each", mixed.Write("experts_mixed")}};
  for (const Quantization quantization :
       {Quantization::kNone, Quantization::kW4A8, Quantization::kW8A8, Quantization::kW4A16}) {
    const std::vector<float> want = Logits(dir, quantization);
    ASSERT_FALSE(want.empty());
    for (const auto& [name, other] : others) EXPECT_EQ(Logits(other, quantization), want) << name;
  }
}

struct Loaded {
  ModelConfig config;
  absl::StatusOr<DecoderWeights> weights = absl::UnknownError("");
  int64_t bytes_read = 0;  // before the last word of the progress, which is always all
  int64_t total = 0;
};

Loaded LoadWeights(const std::string& dir, LoadOptions options) {
  Loaded loaded;
  int64_t last = 0;
  options.isa = testing::HostIsas().back();
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_GE(done, last);
    loaded.bytes_read = last;
    loaded.total = total;
    last = done;
  };
  ThreadPool pool(2);
  const auto config = LoadModelConfig(dir);
  const auto checkpoint = Checkpoint::Open(dir);
  EXPECT_TRUE(config.ok() && checkpoint.ok()) << checkpoint.status();
  if (!config.ok() || !checkpoint.ok()) return loaded;
  loaded.config = *config;
  loaded.weights = LoadDecoderWeights(*checkpoint, *config, options, &pool);
  return loaded;
}

// One row of ones and twos for each slot, read by all of them: y [num_slots, n].
std::vector<float> RunSlots(const GroupedLinear& linear, int64_t first_channel) {
  const int64_t slots = linear.num_slots();
  std::vector<int32_t> offsets;
  std::vector<int32_t> rows(static_cast<size_t>(slots), 0);
  for (int64_t s = 0; s <= slots; ++s) offsets.push_back(static_cast<int32_t>(s));
  std::vector<float> x;
  for (int64_t c = 0; c < linear.k(); ++c) {
    x.push_back(static_cast<float>((first_channel + c) % 7) - 3.0F);
  }
  std::vector<float> y(static_cast<size_t>(slots * linear.n()));
  ThreadPool pool(1);
  linear.Run({.offsets = offsets.data(),
              .a_rows = rows.data(),
              .rows = {.values = x.data(), .stride = linear.k()}},
             y.data(), &pool);
  return y;
}

// Whatever the ranks: slices and whole experts of all of them together are what one rank has.
TEST(ExpertLoadingTest, SharesTogetherAreTheWhole) {
  for (const bool fused : {false, true}) {
    TinyCheckpoint tiny = WithExperts(1);
    if (fused) Fuse(&tiny, 0, "mlp");
    const std::string dir = tiny.Write("experts_shares");
    const Loaded whole = LoadWeights(dir, {});
    ASSERT_TRUE(whole.weights.ok()) << whole.weights.status();
    const MoeWeights& moe = *whole.weights->layers[0].moe;
    const std::vector<float> gate_up = RunSlots(moe.gate_up, 0);  // [kExperts, gate and up]
    const std::vector<float> down = RunSlots(moe.down, 0);        // [kExperts, kHidden]
    for (const int expert_size : {1, 2, 4}) {
      std::vector<float> all_gate_up(gate_up.size(), 0.0F);
      std::vector<float> all_down(down.size(), 0.0F);
      for (int rank = 0; rank < 4; ++rank) {
        const RankPlace place = {.rank = rank, .size = 4, .expert_size = expert_size};
        const Loaded part = LoadWeights(dir, {.place = place});
        ASSERT_TRUE(part.weights.ok()) << part.weights.status();
        const MoeWeights& own = *part.weights->layers[0].moe;
        EXPECT_EQ(own.router.n(), kExperts);
        const Range slots = SlotsOf(kExperts, place);
        const int64_t channels = kIntermediate / place.moe_tp_size();
        const int64_t first = place.moe_tp_rank() * channels;
        ASSERT_EQ(own.gate_up.num_slots(), slots.size());
        ASSERT_EQ(own.gate_up.n(), 2 * channels);
        ASSERT_EQ(own.down.k(), channels);
        const std::vector<float> own_gate_up = RunSlots(own.gate_up, 0);
        const std::vector<float> own_down = RunSlots(own.down, first);
        for (int64_t s = 0; s < slots.size(); ++s) {
          const int64_t expert = slots.begin + s;
          for (int64_t c = 0; c < 2 * channels; ++c) {
            const int64_t column = c / channels * kIntermediate + first + c % channels;
            all_gate_up[static_cast<size_t>(expert * 2 * kIntermediate + column)] +=
                own_gate_up[static_cast<size_t>(s * 2 * channels + c)];
          }
          for (int64_t c = 0; c < kHidden; ++c) {
            all_down[static_cast<size_t>(expert * kHidden + c)] +=
                own_down[static_cast<size_t>(s * kHidden + c)];
          }
        }
      }
      EXPECT_EQ(all_gate_up, gate_up) << expert_size;
      // Sums of 256 products of about 0.2 in another order.
      for (size_t i = 0; i < down.size(); ++i) ASSERT_NEAR(all_down[i], down[i], 1e-4);
    }
  }
}

// Slot after slot, copies included.
TEST(ExpertLoadingTest, SlotsHoldTheExpertsOfTheLayout) {
  const std::string dir = WithExperts(2).Write("experts_layout");
  const Loaded whole = LoadWeights(dir, {});
  ASSERT_TRUE(whole.weights.ok());
  auto layout = std::make_shared<ExpertLayout>();
  layout->num_experts = kExperts;
  layout->num_slots = 6;
  layout->expert_of_slot = {0, 1, 2, 3, 0, 3, /* layer 1 */ 3, 3, 2, 1, 0, 1};
  ASSERT_TRUE(CheckExpertLayout(*layout, 2, kExperts, 2).ok());
  for (int rank = 0; rank < 2; ++rank) {
    const RankPlace place = {.rank = rank, .size = 2, .expert_size = 2};
    const Loaded part = LoadWeights(dir, {.place = place, .expert_layout = layout});
    ASSERT_TRUE(part.weights.ok()) << part.weights.status();
    EXPECT_NEAR(static_cast<double>(part.bytes_read), static_cast<double>(part.total),
                static_cast<double>(part.total) / 50);
    for (const int64_t layer : {0, 1}) {
      const auto l = static_cast<size_t>(layer);
      const std::vector<float> all = RunSlots(whole.weights->layers[l].moe->down, 0);
      const std::vector<float> own = RunSlots(part.weights->layers[l].moe->down, 0);
      ASSERT_EQ(static_cast<int64_t>(own.size()), 3 * kHidden);
      for (int64_t s = 0; s < 3; ++s) {
        const int32_t expert =
            layout->expert_of_slot[static_cast<size_t>(layer * 6 + rank * 3 + s)];
        EXPECT_TRUE(std::equal(own.begin() + s * kHidden, own.begin() + (s + 1) * kHidden,
                               all.begin() + expert * kHidden))
            << "layer " << layer << ", slot " << rank * 3 + s;
      }
    }
  }
}

// What is not a rank's need not be there.
TEST(ExpertLoadingTest, ReadsItsExpertsAndLayersAlone) {
  const RankPlace places[] = {
      {.rank = 1, .size = 2, .expert_size = 2},
      {.stage = 0, .num_stages = 2},
      {.stage = 1, .num_stages = 2},
      {.rank = 3, .size = 4, .expert_size = 2, .stage = 1, .num_stages = 2}};
  for (const RankPlace& place : places) {
    TinyCheckpoint tiny = WithExperts(3);
    const std::string all = tiny.Write("experts_all");
    const Loaded whole = LoadWeights(all, {});
    const Range slots = SlotsOf(kExperts, place);
    std::erase_if(tiny.tensors, [&](const auto& entry) {
      const auto expert = ExpertOf(entry.first);
      const bool others = expert.has_value() && (*expert < slots.begin || *expert >= slots.end);
      // Of the first expert the names are taken.
      return !IsOnStage(whole.config, place, entry.first) || (others && *expert != 0);
    });
    const std::string of_own = tiny.Write("experts_own");
    const Loaded own = LoadWeights(of_own, {.place = place});
    ASSERT_TRUE(own.weights.ok()) << own.weights.status();
    EXPECT_EQ(static_cast<int64_t>(own.weights->layers.size()),
              LayersOf(whole.config, place).size());
    EXPECT_EQ(own.weights->embedding.rows.size() > 0, place.is_first_stage());
    EXPECT_EQ(own.weights->final_norm.empty(), !place.is_last_stage());
    EXPECT_NEAR(static_cast<double>(own.bytes_read), static_cast<double>(own.total),
                static_cast<double>(own.total) / 50);
    EXPECT_LT(own.total, whole.total);
    const Loaded same = LoadWeights(all, {.place = place});
    EXPECT_EQ(same.total, own.total);
    EXPECT_EQ(same.weights->size_bytes(), own.weights->size_bytes());

    const RankPlace other = place.num_stages > 1
                                ? RankPlace{.stage = 1 - place.stage, .num_stages = 2}
                                : RankPlace{.size = 2, .expert_size = 2};
    const Loaded missing = LoadWeights(of_own, {.place = other});
    EXPECT_EQ(missing.weights.status().code(), absl::StatusCode::kNotFound);
  }
}

TEST(ExpertLoadingTest, LeastBytesAreNearThoseOfTheWeights) {
  const std::string dir = WithExperts(3, 8).Write("experts_least");
  auto layout = std::make_shared<ExpertLayout>(ExpertLayout::Uniform(3, 8));
  const RankPlace places[] = {
      {},
      {.rank = 1, .size = 4, .expert_size = 4},
      {.rank = 1, .size = 4, .expert_size = 1},
      {.stage = 0, .num_stages = 2},
      {.rank = 2, .size = 4, .expert_size = 2, .stage = 1, .num_stages = 2}};
  for (const RankPlace& place : places) {
    for (const Quantization quantization : {Quantization::kNone, Quantization::kW8A8}) {
      LoadOptions options = {.place = place,
                             .expert_layout = place.size > 1 ? layout : nullptr,
                             .quantization = quantization,
                             .head_quantization = HeadQuantization::kNone};
      const Loaded loaded = LoadWeights(dir, options);
      ASSERT_TRUE(loaded.weights.ok()) << loaded.weights.status();
      const int64_t least = LeastWeightBytes(loaded.config, options);
      EXPECT_LE(least, loaded.weights->size_bytes());
      // Scales and sums of channels are much of so small a model in 8 bits.
      const int percent = quantization == Quantization::kNone ? 90 : 75;
      EXPECT_GT(least, loaded.weights->size_bytes() * percent / 100);
    }
  }
}

// Of 16 experts a token reads 2: then a head is much of what a step reads.
TEST(ExpertLoadingTest, TheHeadIsWeighedAgainstTheExpertsThatATokenReads) {
  const std::string dir = WithExperts(2, 16).Write("experts_head");
  const RankPlace places[] = {{},
                              {.rank = 1, .size = 2, .expert_size = 2},
                              {.stage = 0, .num_stages = 2},
                              {.stage = 1, .num_stages = 2}};
  for (const RankPlace& place : places) {
    const Loaded loaded = LoadWeights(dir, {.place = place, .quantization = Quantization::kW4A8});
    ASSERT_TRUE(loaded.weights.ok()) << loaded.weights.status();
    EXPECT_EQ(loaded.weights->quantization_name, "w4a8 (folded), head int8");
  }
}

TEST(ExpertLoadingTest, AStepReadsTheExpertsOfAToken) {
  ThreadPool pool(2);
  std::vector<int64_t> step_bytes;
  for (const int64_t k : {1, 2, 4}) {
    TinyCheckpoint tiny = WithExperts(2);
    tiny.config["num_experts_per_tok"] = k;
    const auto model =
        testing::LoadOrFail(tiny.Write("experts_step"), {.isa = testing::HostIsas().back()}, &pool);
    ASSERT_NE(model, nullptr);
    step_bytes.push_back(model->step_weight_bytes());
    if (k == kExperts) {
      const int64_t embedding = TinyCheckpoint::kVocab * kHidden * 4;
      EXPECT_EQ(model->step_weight_bytes(), model->weight_bytes() - embedding);
    }
  }
  const int64_t expert_bytes = int64_t{2} * 3 * kIntermediate * kHidden * 4;  // in both layers
  EXPECT_EQ(step_bytes[1] - step_bytes[0], expert_bytes);
  EXPECT_EQ(step_bytes[2] - step_bytes[1], 2 * expert_bytes);
}

// All linear layers but these are quantized: the router.
void QuantizeRouter(TinyCheckpoint* tiny) {
  CheckpointScheme scheme;
  scheme.ignore = {"lm_head", "re:.*self_attn.*", "re:.*experts.*"};
  tiny->config["quantization_config"] = QuantizationConfigJson(scheme);
}

// Whatever a quantizer did to it, the router is float32.
TEST(ExpertLoadingTest, AQuantizedRouterIsExpanded) {
  TinyCheckpoint plain = WithExperts(1);
  const std::string gate = Block(0) + "gate";
  TinyTensor& router = plain.tensors.at(gate + ".weight");
  ThreadPool pool(1);
  const auto weight = kernels::QuantizeRtn(router.values.data(), kExperts, kHidden, {}, &pool);
  ASSERT_TRUE(weight.ok()) << weight.status();
  TinyCheckpoint quantized = plain;
  QuantizeRouter(&quantized);
  quantized.Pack(gate, *weight);
  for (int64_t e = 0; e < kExperts; ++e) {
    for (int64_t c = 0; c < kHidden; ++c) {
      router.values[static_cast<size_t>(e * kHidden + c)] = weight->Dequantize(e, c);
    }
  }
  const std::vector<float> want = Logits(plain.Write("router_plain"), Quantization::kNone);
  EXPECT_EQ(Logits(quantized.Write("router_quantized"), Quantization::kNone), want);
  // A rule for all Linear modules, and a plain tensor: newer transformers' routers are no Linear.
  TinyCheckpoint not_ignored = plain;
  QuantizeRouter(&not_ignored);
  EXPECT_EQ(Logits(not_ignored.Write("router_not_ignored"), Quantization::kNone), want);
}

// A checkpoint that is damaged, and what is said of it.
struct Fault {
  std::string name;
  std::function<void(TinyCheckpoint*)> make;
  absl::StatusCode code;
  std::vector<std::string> parts;
  LoadOptions options = {};
};

void ExpectNamed(const Fault& fault) {
  TinyCheckpoint tiny = WithExperts(1);
  fault.make(&tiny);
  const Loaded loaded = LoadWeights(tiny.Write("experts_fault_" + fault.name), fault.options);
  EXPECT_EQ(loaded.weights.status().code(), fault.code)
      << fault.name << ": " << loaded.weights.status();
  for (const std::string& part : fault.parts) {
    EXPECT_THAT(std::string(loaded.weights.status().message()), HasSubstr(part)) << fault.name;
  }
}

TEST(ExpertLoadingTest, FaultsAreNamed) {
  const std::string expert = Block(0) + "experts.2.";
  const Fault faults[] = {
      {"missing",
       [&](TinyCheckpoint* tiny) { tiny->tensors.erase(expert + "w2.weight"); },
       absl::StatusCode::kNotFound,
       {expert + "w2.weight"}},
      {"no_router",
       [](TinyCheckpoint* tiny) { tiny->tensors.erase(Block(0) + "gate.weight"); },
       absl::StatusCode::kNotFound,
       {Block(0) + "gate.weight"}},
      {"no_experts",
       [](TinyCheckpoint* tiny) {
         std::erase_if(tiny->tensors, [](const auto& t) { return ExpertOf(t.first).has_value(); });
       },
       absl::StatusCode::kNotFound,
       {Block(0) + "experts.0.w1.weight"}},
      {"shape",
       [&](TinyCheckpoint* tiny) {
         tiny->tensors.at(expert + "w1.weight").shape = {128, 256};
       },
       absl::StatusCode::kInvalidArgument,
       {expert + "w1.weight", "[128, 256]", "[256, 128]"}},
      {"router_shape",
       [](TinyCheckpoint* tiny) { tiny->config["num_local_experts"] = 5; },
       absl::StatusCode::kInvalidArgument,
       {Block(0) + "gate.weight", "[4, 128]", "[5, 128]"}},
      {"router_bias",
       [](TinyCheckpoint* tiny) {
         tiny->tensors[Block(0) + "gate.bias"] = {.shape = {4}, .values = {0, 0, 1, 0}};
       },
       absl::StatusCode::kInvalidArgument,
       {Block(0) + "gate.bias", "not zero"}},
      {"cut_groups",
       [](TinyCheckpoint*) {},
       absl::StatusCode::kInvalidArgument,
       {Block(0) + "experts.0.w2", "256 input channels in 4 slices are 64", "groups of 128",
        "expert-parallel sizes that do not are 2, 4"},
       {.place = {.size = 4, .expert_size = 1}, .quantization = Quantization::kW4A8}},
  };
  for (const Fault& fault : faults) ExpectNamed(fault);
}

TEST(ExpertLoadingTest, FaultsOfFusedTensorsAreNamed) {
  const Fault faults[] = {
      {"fused_shape",
       [](TinyCheckpoint* tiny) {
         Fuse(tiny, 0, "mlp");
         tiny->tensors.at("model.layers.0.mlp.experts.gate_up_proj").shape = {4, kHidden, 512};
       },
       absl::StatusCode::kInvalidArgument,
       {"mlp.experts.gate_up_proj", "[4, 128, 512]", "[4, 512, 128]"}},
      {"fused_missing",
       [](TinyCheckpoint* tiny) {
         Fuse(tiny, 0, "mlp");
         tiny->tensors.erase("model.layers.0.mlp.experts.down_proj");
       },
       absl::StatusCode::kNotFound,
       {"mlp.experts.down_proj"}},
      {"fused_int8",
       [](TinyCheckpoint* tiny) {
         Fuse(tiny, 0, "mlp");
         TinyTensor& down = tiny->tensors.at("model.layers.0.mlp.experts.down_proj");
         down.dtype = DType::kI8;
         down.raw.resize(down.values.size());
       },
       absl::StatusCode::kUnimplemented,
       {"mlp.experts.down_proj", "int8", "full precision only"}},
      {"fused_packed",
       [](TinyCheckpoint* tiny) {
         Fuse(tiny, 0, "mlp");
         Rename(tiny, "model.layers.0.mlp.experts.gate_up_proj",
                "model.layers.0.mlp.experts.gate_up_proj_blocks");
       },
       absl::StatusCode::kUnimplemented,
       {"mlp.experts.gate_up_proj_blocks", "full precision only"}},
  };
  for (const Fault& fault : faults) ExpectNamed(fault);
}

}  // namespace
}  // namespace nibble::engine
