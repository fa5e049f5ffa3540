// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Logits of small random checkpoints of every architecture against Hugging Face transformers.

#include <cmath>
#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/model.h"
#include "tests/engine/model/model_runner.h"

namespace nibble::engine {
namespace {

using testing::ModelRunner;

const std::string kFixtures = NIBBLE_SOURCE_DIR "/tests/fixtures/models";

// Folders that hold an expected.json: a new fixture is tested without naming it here.
std::vector<std::string> FixtureNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFixtures)) {
    if (std::filesystem::exists(entry.path() / "expected.json")) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

struct Expected {
  std::vector<int32_t> input_ids;
  std::vector<int64_t> positions;
  std::vector<std::vector<float>> logits;  // of `positions`
  std::vector<int32_t> argmax;             // of every position
};

Expected ReadExpected(const std::string& name) {
  auto text = ReadFile(kFixtures + "/" + name + "/expected.json", size_t{1} << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  auto json = ParseJson(*text);
  EXPECT_TRUE(json.ok()) << json.status();
  Expected expected;
  expected.input_ids = json->at("input_ids").get<std::vector<int32_t>>();
  for (const auto& row : json->at("logits")) {
    expected.positions.push_back(row.at("position").get<int64_t>());
    expected.logits.push_back(row.at("values").get<std::vector<float>>());
  }
  expected.argmax = json->at("argmax").get<std::vector<int32_t>>();
  return expected;
}

using Param = std::tuple<std::string, Isa>;

class ModelArchitecturesTest : public ::testing::TestWithParam<Param> {};

// Both sides compute in float32 from the same weights, in different orders of summation over at
// most 200 terms a row and three layers: a few hundred float epsilons (6e-8) of the largest value.
TEST_P(ModelArchitecturesTest, LogitsEqualTransformers) {
  const auto& [name, isa] = GetParam();
  const Expected expected = ReadExpected(name);
  ThreadPool pool(2);
  auto model =
      testing::LoadOrFail(kFixtures + "/" + name, {.dtype = DType::kF32, .isa = isa}, &pool);
  ASSERT_NE(model, nullptr);
  const int64_t vocab_size = model->config().vocab_size;
  ModelRunner runner(model.get(), 8, &pool);
  const std::vector<float> logits = runner.Prefill(expected.input_ids, 1000);
  ASSERT_EQ(logits.size(), expected.input_ids.size() * static_cast<size_t>(vocab_size));
  ASSERT_FALSE(expected.positions.empty());
  for (size_t i = 0; i < expected.positions.size(); ++i) {
    const std::vector<float>& want = expected.logits[i];
    ASSERT_EQ(static_cast<int64_t>(want.size()), vocab_size);
    float largest = 0.0F;
    for (const float value : want) largest = std::max(largest, std::abs(value));
    const float* got = logits.data() + expected.positions[i] * vocab_size;
    float worst = 0.0F;
    for (int64_t v = 0; v < vocab_size; ++v) {
      // Written so that a NaN fails too.
      const float difference = std::abs(got[v] - want[static_cast<size_t>(v)]);
      worst = difference <= worst ? worst : difference;
    }
    EXPECT_LE(worst, 1e-4F * largest) << "position " << expected.positions[i];
  }
  for (size_t t = 0; t < expected.argmax.size(); ++t) {
    EXPECT_EQ(testing::ArgMax(logits.data() + static_cast<int64_t>(t) * vocab_size, vocab_size),
              expected.argmax[t])
        << "position " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(, ModelArchitecturesTest,
                         ::testing::Combine(::testing::ValuesIn(FixtureNames()),
                                            ::testing::ValuesIn(testing::HostIsas())),
                         [](const ::testing::TestParamInfo<Param>& test) {
                           return fmt::format("{}_{}", std::get<0>(test.param),
                                              ToString(std::get<1>(test.param)));
                         });

}  // namespace
}  // namespace nibble::engine
