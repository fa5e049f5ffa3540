// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The bundled models against their reference values (models/*/reference.json).

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/model.h"
#include "tests/engine/model/model_runner.h"

namespace nibble::engine {
namespace {

using testing::ModelRunner;
using testing::TestSequence;

const std::string kModels = NIBBLE_SOURCE_DIR "/models/";

class ModelReferenceTest : public ::testing::TestWithParam<std::tuple<std::string, Isa>> {
 protected:
  static std::string dir() { return kModels + std::get<0>(GetParam()); }
  static Isa isa() { return std::get<1>(GetParam()); }

  static nlohmann::json Reference() {
    auto text = ReadFile(dir() + "/reference.json", size_t{1} << 20);
    EXPECT_TRUE(text.ok()) << text.status();
    auto json = ParseJson(*text);
    EXPECT_TRUE(json.ok()) << json.status();
    return *std::move(json);
  }
};

TEST_P(ModelReferenceTest, LogitsAndGreedyTokens) {
  ThreadPool pool(2);
  auto model = testing::LoadOrFail(dir(), {.dtype = DType::kF32, .isa = isa()}, &pool);
  ASSERT_NE(model, nullptr);
  const int64_t vocab_size = model->config().vocab_size;
  ModelRunner runner(model.get(), 64, &pool);
  const nlohmann::json reference = Reference();
  ASSERT_EQ(reference.at("prompts").size(), 8U);

  // All prompts in one batch, as the server runs them.
  std::vector<TestSequence> sequences;
  std::vector<std::vector<int32_t>> want;
  for (const auto& prompt : reference.at("prompts")) {
    sequences.push_back({.ids = prompt.at("ids").get<std::vector<int32_t>>()});
    want.push_back(prompt.at("greedy_ids").get<std::vector<int32_t>>());
  }
  std::vector<std::vector<int32_t>> greedy(sequences.size());
  for (size_t step = 0; step < want[0].size(); ++step) {
    std::vector<testing::TestChunk> chunks;
    for (TestSequence& sequence : sequences) {
      chunks.push_back(
          {.sequence = &sequence,
           .num_tokens = static_cast<int64_t>(sequence.ids.size()) - sequence.num_computed});
    }
    const std::vector<float> logits = runner.Step(chunks);
    for (size_t s = 0; s < sequences.size(); ++s) {
      const float* row = logits.data() + static_cast<int64_t>(s) * vocab_size;
      if (step == 0) {
        for (const auto& entry : reference.at("prompts")[s].at("top10")) {
          EXPECT_NEAR(row[entry[0].get<int>()], entry[1].get<double>(), 1e-3)
              << "prompt " << s << ", token " << entry[0].get<int>();
        }
        double sum = 0.0;
        for (int64_t v = 0; v < vocab_size; ++v) sum += std::exp(static_cast<double>(row[v]));
        EXPECT_NEAR(std::log(sum), reference.at("prompts")[s].at("logsumexp").get<double>(), 1e-3);
      }
      greedy[s].push_back(testing::ArgMax(row, vocab_size));
      sequences[s].ids.push_back(greedy[s].back());
    }
  }
  for (size_t s = 0; s < sequences.size(); ++s) EXPECT_EQ(greedy[s], want[s]) << "prompt " << s;
}

// What int8 activations and 4-bit weights may cost on one logit is nobody's contract; the bundled
// models' first greedy token of every prompt has a margin that survives them.
TEST_P(ModelReferenceTest, QuantizedToW4A8KeepsTheFirstToken) {
  ThreadPool pool(2);
  auto model =
      testing::LoadOrFail(dir(), {.quantization = Quantization::kW4A8, .isa = isa()}, &pool);
  ASSERT_NE(model, nullptr);
  EXPECT_THAT(model->quantization_name(), ::testing::StartsWith("w4a8 (folded), head "));
  const int64_t vocab_size = model->config().vocab_size;
  ModelRunner runner(model.get(), 64, &pool);
  int num_equal = 0;
  const nlohmann::json reference = Reference();
  for (const auto& prompt : reference.at("prompts")) {
    TestSequence sequence{.ids = prompt.at("ids").get<std::vector<int32_t>>()};
    const auto num_tokens = static_cast<int64_t>(sequence.ids.size());
    const std::vector<float> logits =
        runner.Step({{.sequence = &sequence, .num_tokens = num_tokens}});
    num_equal +=
        testing::ArgMax(logits.data(), vocab_size) == prompt.at("greedy_ids")[0].get<int32_t>();
  }
  EXPECT_GE(num_equal, 7) << "of 8";
}

INSTANTIATE_TEST_SUITE_P(, ModelReferenceTest,
                         ::testing::Combine(::testing::Values("stories-llama", "stories-mixtral"),
                                            ::testing::ValuesIn(testing::HostIsas())),
                         [](const auto& test) {
                           const std::string& name = std::get<0>(test.param);
                           return name.substr(name.find('-') + 1) + "_" +
                                  std::string(ToString(std::get<1>(test.param)));
                         });

}  // namespace
}  // namespace nibble::engine
