// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What ranks load, and what cannot be shared.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/linear_loader.h"
#include "engine/model/model.h"
#include "engine/model/weight_loader.h"
#include "tests/engine/model/differences.h"
#include "tests/engine/model/model_runner.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kStories = NIBBLE_SOURCE_DIR "/models/stories-llama";
const std::string kFixtures = NIBBLE_SOURCE_DIR "/tests/fixtures/";

Isa BestIsa() { return testing::HostIsas().back(); }

// A layer's parts give what the whole does, for the same int8 inputs: only with the same codes.
TEST(ShareLoadingTest, RoundedWhileLoadingToTheSameCodes) {
  const auto config = LoadModelConfig(kStories);
  const auto checkpoint = Checkpoint::Open(kStories);
  ASSERT_TRUE(config.ok() && checkpoint.ok());
  ThreadPool pool(2);
  constexpr int64_t kRows = 3;
  testing::Random random(9);
  for (const Quantization quantization : {Quantization::kW4A8, Quantization::kW8A8}) {
    for (const std::string module :
         {"model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj",
          "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.k_proj"}) {
      const int64_t k = ShareOf(*config, {}, module)->k;
      std::vector<int8_t> codes(static_cast<size_t>(kRows * k));
      for (int8_t& code : codes) code = static_cast<int8_t>(random.Int(-127, 127));
      // [kRows, rows of the share]
      const auto run = [&](const RankPlace& place) {
        const LoadOptions options = {
            .place = place, .quantization = quantization, .isa = BestIsa()};
        const MatrixShare share = *ShareOf(*config, place, module);
        const kernels::CpuWeightPacker packer(options.isa);
        LinearLoader loader(*checkpoint, *config, options, packer, DType::kBf16, 1, &pool);
        const auto linear = loader.Load({{.name = module, .share = share}});
        EXPECT_TRUE(linear.ok()) << linear.status();
        EXPECT_EQ(linear->n(), share.rows.size());
        EXPECT_EQ(linear->k(), share.columns.size());
        ActivationBuffer buffer;
        buffer.Allocate(kRows, k, {.int8 = true});
        const LinearInput input = buffer.For(*linear);
        for (int64_t row = 0; row < kRows; ++row) {
          input.quantized.scales[row] = 0.01F;
          input.quantized.sums[row] = 0;
          for (int64_t c = 0; c < linear->k(); ++c) {
            const int8_t code = codes[static_cast<size_t>(row * k + share.columns.begin + c)];
            input.quantized.values[row * input.quantized.stride + c] = code;
            input.quantized.sums[row] += code;
          }
        }
        std::vector<float> y(static_cast<size_t>(kRows * linear->n()));
        linear->Run(input, kRows, y.data(), &pool);
        return y;
      };
      const std::vector<float> whole = run({});
      const auto n = static_cast<int64_t>(whole.size()) / kRows;
      for (const int size : {2, 4}) {
        std::vector<float> sum(whole.size(), 0.0F);
        for (int rank = 0; rank < size; ++rank) {
          const MatrixShare share = *ShareOf(*config, {rank, size}, module);
          const std::vector<float> part = run({rank, size});
          for (int64_t i = 0; i < static_cast<int64_t>(part.size()); ++i) {
            const int64_t row = i / share.rows.size();
            const int64_t column = share.rows.begin + i % share.rows.size();
            sum[static_cast<size_t>(row * n + column)] += part[static_cast<size_t>(i)];
          }
        }
        // Exact integer sums; a float product for each rank's.
        EXPECT_LE(testing::Compare(sum, whole).worst, 1e-6) << module << " in " << size;
      }
    }
  }
}

TEST(ShareLoadingTest, RanksHoldAndReadTheirShare) {
  struct Read {
    int64_t done = 0;
    int64_t total = 0;
    int64_t weight_bytes = 0;
  };
  const auto load = [](const RankPlace& place) {
    Read read;
    ThreadPool pool(1);
    auto model = testing::LoadOrFail(kStories,
                                     {.place = place,
                                      .isa = BestIsa(),
                                      .progress =
                                          [&read](int64_t done, int64_t total) {
                                            EXPECT_GE(done, read.done);
                                            EXPECT_LE(done, total);
                                            read.done = done;
                                            read.total = total;
                                          }},
                                     &pool);
    if (model == nullptr) return read;
    EXPECT_EQ(read.done, read.total);
    EXPECT_EQ(model->has_logits(), place.rank == 0);
    EXPECT_EQ(model->config().num_heads, 8);
    EXPECT_EQ(model->rank_config().num_heads, 8 / place.size);
    EXPECT_EQ(model->rank_config().num_kv_heads, std::max(1, 4 / place.size));
    EXPECT_EQ(model->rank_config().intermediate_size, 512 / place.size);
    read.weight_bytes = model->weight_bytes();
    return read;
  };
  const Read whole = load({});
  for (const int size : {2, 4}) {
    for (int rank = 0; rank < size; ++rank) {
      const Read part = load({.rank = rank, .size = size});
      // Norms are 9 of 8389 KB, whole everywhere.
      EXPECT_NEAR(static_cast<double>(part.total), static_cast<double>(whole.total) / size,
                  10'000.0);
      EXPECT_NEAR(static_cast<double>(part.weight_bytes),
                  static_cast<double>(whole.weight_bytes) / size, 10'000.0);
    }
  }
  // Beyond the four KV heads only these stay: 2 of 12 parts of a layer's attention.
  EXPECT_LT(load({.rank = 5, .size = 8}).total, whole.total / 6);
}

// What is checked before ranks start: never more than they hold, nor much less.
TEST(ShareLoadingTest, LeastBytesAreNearThoseOfTheWeights) {
  const auto config = LoadModelConfig(kStories);
  ASSERT_TRUE(config.ok());
  ThreadPool pool(1);
  for (const Quantization quantization : {Quantization::kNone, Quantization::kW8A8}) {
    for (int rank = 0; rank < 4; ++rank) {
      const LoadOptions options = {.place = {.rank = rank, .size = 4},
                                   .quantization = quantization,
                                   .head_quantization = HeadQuantization::kNone,
                                   .isa = BestIsa()};
      const auto model = testing::LoadOrFail(kStories, options, &pool);
      ASSERT_NE(model, nullptr);
      const int64_t least = LeastWeightBytes(*config, options);
      EXPECT_LE(least, model->weight_bytes());
      EXPECT_GT(least, model->weight_bytes() * 9 / 10);
    }
  }
}

TEST(ShareLoadingTest, WhatDoesNotSplitIsRefused) {
  ThreadPool pool(1);
  const auto message = [&pool](const std::string& dir, int size, Quantization quantization,
                               absl::StatusCode code) {
    const auto model = Model::Load(
        dir, {.place = {.rank = size - 1, .size = size}, .quantization = quantization}, &pool);
    EXPECT_EQ(model.status().code(), code) << model.status();
    return std::string(model.status().message());
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(message(kStories, 3, Quantization::kNone, invalid),
              AllOf(HasSubstr("stories-llama"), HasSubstr("num_attention_heads is 8"),
                    HasSubstr("1, 2, 4, 8")));
  EXPECT_THAT(message(kFixtures + "models/qwen3", 2, Quantization::kNone, invalid),
              HasSubstr("num_key_value_heads is 3"));
  EXPECT_THAT(message(kFixtures + "models/llama_linear_bias", 16, Quantization::kNone, invalid),
              HasSubstr("num_attention_heads is 8"));
  // Rounded in groups of 128, as stored in groups of 32.
  EXPECT_THAT(message(kStories, 8, Quantization::kW4A8, invalid),
              AllOf(HasSubstr("model.layers.0.self_attn.o_proj"), HasSubstr("groups of 128"),
                    HasSubstr("1, 2, 4")));
  EXPECT_THAT(message(kFixtures + "quantized/gptq", 2, Quantization::kNone, invalid),
              AllOf(HasSubstr("model.layers.0.mlp.down_proj"), HasSubstr("groups of 32")));
  EXPECT_THAT(message(kFixtures + "quantized/awq", 4, Quantization::kNone, invalid),
              AllOf(HasSubstr("model.layers.0.mlp.down_proj"), HasSubstr("rank 3 has 72..95")));
  for (const char* name : {"gptq_act_order", "ct_group_index"}) {
    EXPECT_THAT(message(kFixtures + "quantized/" + name, 2, Quantization::kNone,
                        absl::StatusCode::kUnimplemented),
                AllOf(HasSubstr("self_attn.o_proj"), HasSubstr("g_idx"), HasSubstr("act-order")));
  }
}

}  // namespace
}  // namespace nibble::engine
