// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/block_runner.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "quantize/block_quantizer.h"
#include "quantize/block_source.h"
#include "quantize/methods/float_block.h"
#include "quantize/statistics.h"
#include "tests/testing/random.h"

namespace nibble::quantize {
namespace {

using nibble::testing::Random;

const std::string kFixtures = NIBBLE_SOURCE_DIR "/tests/fixtures/models/";
constexpr int64_t kSeqs = 3;
constexpr int64_t kLength = 21;  // beyond a block of the cache, and mistral's window

struct Fixture {
  explicit Fixture(const std::string& name) {
    const std::string dir = kFixtures + name;
    config = *engine::LoadModelConfig(dir);
    block = *LoadBlock(*engine::Checkpoint::Open(dir), config, 1, &pool);
    rope = kernels::MakeRopeTable(config.rope, kLength, &pool);
    Random random(5);
    for (int64_t i = 0; i < kSeqs * kLength * config.hidden_size; ++i) {
      x.push_back(random.Normal());
    }
  }

  std::vector<float> Run(int activation_bits, Isa isa, int64_t seqs_per_run = kSeqs,
                         const SiteObserver& observer = nullptr) {
    auto runner = BlockRunner::Create(config, rope, block, activation_bits, isa, &pool);
    EXPECT_TRUE(runner.ok()) << runner.status();
    std::vector<float> y = x;
    for (int64_t seq = 0; seq < kSeqs; seq += seqs_per_run) {
      const auto status = runner->Run(y.data() + seq * kLength * config.hidden_size, seqs_per_run,
                                      kLength, observer);
      EXPECT_TRUE(status.ok()) << status;
    }
    return y;
  }

  ThreadPool pool{2};
  engine::ModelConfig config;
  BlockWeights block;
  kernels::RopeTable rope;
  std::vector<float> x;  // [kSeqs * kLength, hidden]
};

// The float block of norm tweaking is written apart from this one, with another attention.
TEST(BlockRunnerTest, AgreesWithTheFloatBlock) {
  for (const char* name : {"llama", "llama_linear_bias", "mistral", "qwen2", "qwen3"}) {
    Fixture fixture(name);
    for (const int bits : {16, 8}) {
      const std::vector<float> y = fixture.Run(bits, Isa::kRef);
      const auto block = FloatBlock::Create(fixture.block,
                                            {.attention = AttentionShapeOf(fixture.config),
                                             .rms_norm_eps = fixture.config.rms_norm_eps,
                                             .sliding_window = fixture.config.sliding_window[1],
                                             .activation_bits = bits,
                                             .rope = &fixture.rope},
                                            Gradient::kNone, &fixture.pool);
      ASSERT_TRUE(block.ok()) << block.status();
      const int64_t size = kLength * fixture.config.hidden_size;
      double least = 1.0;
      for (int64_t seq = 0; seq < kSeqs; ++seq) {
        BlockTrace trace;
        ASSERT_TRUE(
            block->Forward(fixture.x.data() + seq * size, kLength, &trace, &fixture.pool).ok());
        double difference = 0.0;
        double norm = 0.0;
        for (int64_t i = 0; i < size; ++i) {
          const double expected = trace.y[static_cast<size_t>(i)];
          difference += std::pow(expected - y[static_cast<size_t>(seq * size + i)], 2);
          norm += expected * expected;
        }
        // Floats differ by rounding alone; an int8 code next to a tie may fall to either side.
        const double error = std::sqrt(difference / norm);
        EXPECT_LT(error, bits == 16 ? 1e-6 : 2e-2) << name << " " << bits;
        least = std::min(least, error);
      }
      EXPECT_LT(least, 1e-6) << name << " " << bits << ": a sequence without such codes";
    }
  }
}

TEST(BlockRunnerTest, ASequenceDoesNotDependOnTheOthers) {
  Fixture fixture("qwen3");
  for (const Isa isa : {Isa::kRef, *ChooseIsa()}) {
    EXPECT_EQ(fixture.Run(8, isa, kSeqs), fixture.Run(8, isa, 1));
  }
}

TEST(StatisticsTest, AreThoseOfTheRows) {
  Fixture fixture("llama");
  BlockStatistics statistics[2];
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    StatisticsCollector collector({.num_tokens = kSeqs * kLength, .max_samples = 7}, Isa::kRef,
                                  &pool);
    fixture.Run(16, Isa::kRef, 1, [&](Site site, const float* rows, int64_t num_rows, int64_t k) {
      return collector.Observe(site, rows, num_rows, k);
    });
    statistics[threads == 3] = collector.Finish();
  }
  std::vector<float> rows[4];
  fixture.Run(16, Isa::kRef, kSeqs, [&](Site site, const float* values, int64_t n, int64_t k) {
    rows[static_cast<size_t>(site)].assign(values, values + n * k);
    return absl::OkStatus();
  });
  for (const Site site : kSites) {
    const InputStatistics& got = StatisticsOf(site, statistics[0]);
    EXPECT_EQ(got.hessian, StatisticsOf(site, statistics[1]).hessian);
    const auto& x = rows[static_cast<size_t>(site)];
    const auto k = static_cast<size_t>(got.k);
    const size_t num_tokens = kSeqs * kLength;
    ASSERT_EQ(x.size(), num_tokens * k);
    EXPECT_EQ(got.num_tokens, static_cast<int64_t>(num_tokens));
    for (size_t i = 0; i < k; ++i) {
      double max = 0.0;
      double sum = 0.0;
      for (size_t t = 0; t < num_tokens; ++t) {
        max = std::max(max, std::fabs(static_cast<double>(x[t * k + i])));
        sum += std::fabs(static_cast<double>(x[t * k + i]));
      }
      EXPECT_FLOAT_EQ(got.abs_max[i], static_cast<float>(max));
      EXPECT_NEAR(got.abs_mean[i], sum / num_tokens, 1e-5 * max);
      for (size_t j = 0; j < k; ++j) {
        double product = 0.0;
        double magnitude = 1e-30;
        for (size_t t = 0; t < num_tokens; ++t) {
          const double term = static_cast<double>(x[t * k + i]) * x[t * k + j];
          product += term;
          magnitude += std::fabs(term);
        }
        // Sums of 21 products in float.
        EXPECT_NEAR(got.hessian[i * k + j], product / num_tokens,
                    21 * 1.2e-7 * magnitude / num_tokens);
        EXPECT_EQ(got.hessian[i * k + j], got.hessian[j * k + i]);
      }
    }
    ASSERT_EQ(got.num_samples, 7);
    for (size_t s = 0; s < 7; ++s) {
      const size_t token = s * num_tokens / 7;
      for (size_t i = 0; i < k; ++i) EXPECT_EQ(got.samples[s * k + i], x[token * k + i]);
    }
  }
}

TEST(StatisticsTest, ManyPanelsGiveTheWholeHessian) {
  constexpr int64_t kColumns = 2100;  // two whole panels of columns and a part
  constexpr int64_t kRows = 3;
  Random random(1);
  std::vector<float> rows(kRows * kColumns);
  for (float& value : rows) value = random.Normal();
  ThreadPool pool(2);
  StatisticsCollector collector({.num_tokens = kRows}, *ChooseIsa(), &pool);
  for (const Site site : kSites) {
    ASSERT_TRUE(collector.Observe(site, rows.data(), kRows, site == Site::kO ? kColumns : 8).ok());
  }
  const BlockStatistics statistics = collector.Finish();
  for (int64_t i = 0; i < kColumns; i += 37) {
    for (int64_t j = 0; j < kColumns; j += 41) {
      double expected = 0.0;
      for (int64_t t = 0; t < kRows; ++t) {
        expected += static_cast<double>(rows[static_cast<size_t>(t * kColumns + i)]) *
                    rows[static_cast<size_t>(t * kColumns + j)];
      }
      ASSERT_NEAR(statistics.o.hessian[static_cast<size_t>(i * kColumns + j)], expected / kRows,
                  1e-5)
          << i << ", " << j;
    }
  }
}

TEST(StatisticsTest, ActivationsThatAreNotFiniteAreNamed) {
  for (const float bad : {std::nanf(""), -HUGE_VALF}) {
    std::vector<float> rows(32, 1.0F);
    rows[2 * 8 + 5] = bad;
    ThreadPool pool(1);
    StatisticsCollector collector({.num_tokens = 4}, Isa::kRef, &pool);
    const auto status = collector.Observe(Site::kDown, rows.data(), 4, 8);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                ::testing::HasSubstr("down are not finite (channel 5"));
  }
}

}  // namespace
}  // namespace nibble::quantize
