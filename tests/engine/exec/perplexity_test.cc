// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/perplexity.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/model/model_runner.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;

const std::string kModelDir = NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama3";

class PerplexityTest : public ::testing::Test {
 protected:
  PerplexityTest() : pool_(2), model_(testing::LoadOrFail(kModelDir, {}, &pool_)) {
    testing::Random random(3);
    for (int i = 0; i < 333; ++i) ids_.push_back(static_cast<int32_t>(random.Int(0, 159)));
  }

  absl::StatusOr<PerplexityResult> Compute(const PerplexityOptions& options) {
    return ComputePerplexity(model_.get(), ids_, options, &pool_);
  }

  // The rule, word by word: windows computed whole.
  std::pair<double, int64_t> Direct(int64_t context, int64_t stride) {
    const int64_t vocab_size = model_->config().vocab_size;
    testing::ModelRunner runner(model_.get(), 32, &pool_);
    const auto num_ids = static_cast<int64_t>(ids_.size());
    std::vector<bool> scored(ids_.size(), false);
    double nll = 0.0;
    int64_t num_scored = 0;
    for (int64_t begin = 0; begin < num_ids; begin += stride) {
      const int64_t end = std::min(begin + context, num_ids);
      const std::vector<float> logits =
          runner.Prefill({ids_.begin() + begin, ids_.begin() + end}, end - begin);
      for (int64_t j = begin + 1; j < end; ++j) {
        if (scored[static_cast<size_t>(j)]) continue;
        scored[static_cast<size_t>(j)] = true;
        const float* row = logits.data() + (j - 1 - begin) * vocab_size;
        double sum = 0.0;
        for (int64_t v = 0; v < vocab_size; ++v) sum += std::exp(static_cast<double>(row[v]));
        nll += std::log(sum) - static_cast<double>(row[ids_[static_cast<size_t>(j)]]);
        ++num_scored;
      }
      if (end == num_ids) break;
    }
    return {nll / static_cast<double>(num_scored), num_scored};
  }

  ThreadPool pool_;
  std::unique_ptr<Model> model_;
  std::vector<int32_t> ids_;
};

TEST_F(PerplexityTest, IsTheRule) {
  ASSERT_NE(model_, nullptr);
  const std::vector<std::pair<int64_t, int64_t>> cases = {
      {256, 256}, {256, 100}, {64, 32}, {64, 63}, {64, 64}, {37, 9}, {2, 1}};
  for (const auto& [context, stride] : cases) {
    const auto result = Compute({.context = context, .stride = stride});
    ASSERT_TRUE(result.ok()) << result.status();
    const auto [mean_nll, num_scored] = Direct(context, stride);
    EXPECT_EQ(result->num_tokens, 333);
    EXPECT_EQ(result->num_scored, num_scored) << context << ", " << stride;
    EXPECT_NEAR(result->mean_nll, mean_nll, 1e-9) << context << ", " << stride;
    EXPECT_NEAR(result->perplexity, std::exp(mean_nll), 1e-6 * std::exp(mean_nll));
  }
}

TEST_F(PerplexityTest, ProgressEndsAtTheNumberScored) {
  ASSERT_NE(model_, nullptr);
  int64_t last_done = 0;
  int64_t last_total = 0;
  const auto result =
      Compute({.context = 64, .stride = 64, .progress = [&](int64_t done, int64_t total) {
                 EXPECT_GE(done, last_done);
                 last_done = done;
                 last_total = total;
               }});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(last_done, result->num_scored);
  EXPECT_EQ(last_total, result->num_scored);
}

TEST_F(PerplexityTest, BadOptionsAreNamed) {
  ASSERT_NE(model_, nullptr);
  const auto message = [&](const PerplexityOptions& options) {
    const auto result = Compute(options);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(result.status().message());
  };
  EXPECT_THAT(message({.context = 1, .stride = 1}), HasSubstr("context is 1"));
  EXPECT_THAT(message({.context = 257, .stride = 1}),
              HasSubstr("context is 257, the limits are 2 and 256"));
  EXPECT_THAT(message({.context = 64, .stride = 0}), HasSubstr("stride is 0"));
  EXPECT_THAT(message({.context = 64, .stride = 65}),
              HasSubstr("stride is 65, the limits are 1 and 64"));
  ids_[200] = 160;
  EXPECT_THAT(message({.context = 64, .stride = 32}), HasSubstr("ids[200] is 160"));
  ids_.resize(1);
  EXPECT_THAT(message({.context = 64, .stride = 32}), HasSubstr("at least 2"));
}

}  // namespace
}  // namespace nibble::engine
