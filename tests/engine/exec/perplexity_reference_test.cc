// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Perplexity of the bundled models on our own text: float32 against the reference value, and what
// 16 bit and 4 bit cost.

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "fmt/core.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/exec/perplexity.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/engine/model/model_runner.h"

namespace nibble::engine {
namespace {

const std::string kModels = NIBBLE_SOURCE_DIR "/models/";
const std::string kText = NIBBLE_SOURCE_DIR "/tests/fixtures/data/generated_stories.txt";
// Instrumented arithmetic is an order of magnitude slower: there a part of the text.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kMaxIds = 1025;
#else
constexpr size_t kMaxIds = 1000000;
#endif

struct Subject {
  const char* name;
  double reference;      // reference.json, checked against it below
  double max_w4a8_cost;  // of the whole text
};
void PrintTo(const Subject& subject, std::ostream* out) { *out << subject.name; }

// W4A8 by round to nearest, groups of 128, must cost less than 3 % on the whole text: 2.93 %
// measured, of which int8 activations are 0.2 %. Single choices of equal squared error differ by
// some 0.3 %. With experts 1.32 %. The first 1025 ids alone are too few to hold to that (3.0 % with
// float activations).
constexpr Subject kSubjects[] = {{"llama", 7.60201, 0.03}, {"mixtral", 7.75237, 0.02}};
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kAllowance = 0.01;
#else
constexpr double kAllowance = 0.0;
#endif

class PerplexityReferenceTest : public ::testing::TestWithParam<Subject> {
 protected:
  PerplexityReferenceTest()
      : pool_(2), model_dir_(fmt::format("{}stories-{}", kModels, GetParam().name)) {
    auto tokenizer = Tokenizer::Load(model_dir_);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    auto text = ReadFile(kText, size_t{1} << 20);
    EXPECT_TRUE(text.ok()) << text.status();
    if (!tokenizer.ok() || !text.ok()) return;
    auto ids = (*tokenizer)->Encode(*text, /*add_special_tokens=*/false);
    EXPECT_TRUE(ids.ok()) << ids.status();
    if (ids.ok()) ids_ = *std::move(ids);
    ids_.insert(ids_.begin(), 4091);  // begin_of_text
    EXPECT_EQ(ids_.size(), 8520U);
    ids_.resize(std::min(ids_.size(), kMaxIds));
  }

  double Perplexity(const LoadOptions& options) {
    auto model = testing::LoadOrFail(model_dir_, options, &pool_);
    if (model == nullptr) return NAN;
    const auto result =
        ComputePerplexity(model.get(), ids_, {.context = 512, .stride = 256}, &pool_);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return NAN;
    EXPECT_EQ(result->num_scored, static_cast<int64_t>(ids_.size()) - 1);
    RecordProperty("perplexity", std::to_string(result->perplexity));
    return result->perplexity;
  }

  ThreadPool pool_;
  const std::string model_dir_;
  std::vector<int32_t> ids_;
};

TEST_P(PerplexityReferenceTest, Float32IsTheReference) {
  const double reference = GetParam().reference;
  auto text = ReadFile(model_dir_ + "/reference.json", size_t{1} << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  auto json = ParseJson(*text);
  ASSERT_TRUE(json.ok()) << json.status();
  const auto& texts = json->at("perplexity").at("texts");
  const auto entry = std::find_if(texts.begin(), texts.end(), [](const nlohmann::json& t) {
    return t.at("file") == "generated_stories.txt";
  });
  ASSERT_NE(entry, texts.end());
  ASSERT_EQ(entry->at("perplexity").get<double>(), reference);
  ASSERT_EQ(entry->at("scored").get<int64_t>(), 8519);
  const double perplexity = Perplexity({.dtype = DType::kF32, .isa = testing::HostIsas().back()});
  if (ids_.size() == 8520) {
    EXPECT_NEAR(perplexity, reference, 0.001 * reference);
  } else {
    EXPECT_TRUE(std::isfinite(perplexity));
  }
}

TEST_P(PerplexityReferenceTest, W4A8CostsLittle) {
  const Isa isa = testing::HostIsas().back();
  const double float32 = Perplexity({.dtype = DType::kF32, .isa = isa});
  const double w4a8 = Perplexity({.quantization = Quantization::kW4A8, .isa = isa});
  EXPECT_LT(w4a8, (1.0 + GetParam().max_w4a8_cost + kAllowance) * float32);
  EXPECT_GT(w4a8, float32);
}

// Weights and cache rounded to 16 bit cost nothing that can be seen in text.
TEST_P(PerplexityReferenceTest, BFloat16CostsLessThanHalfAPercent) {
  const Isa isa = testing::HostIsas().back();
  const double float32 = Perplexity({.dtype = DType::kF32, .isa = isa});
  const double bf16 = Perplexity({.dtype = DType::kBf16, .isa = isa});
  EXPECT_NEAR(bf16, float32, 0.005 * float32);
}

INSTANTIATE_TEST_SUITE_P(, PerplexityReferenceTest, ::testing::ValuesIn(kSubjects),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace nibble::engine
