// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/calibration.h"

#include <algorithm>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble::quantize {
namespace {

using nibble::testing::TempDir;
using ::testing::HasSubstr;

const std::string kStories = NIBBLE_SOURCE_DIR "/models/stories-llama";
const std::string kText = NIBBLE_SOURCE_DIR "/tests/fixtures/data/generated_stories.txt";

struct Fixture {
  std::unique_ptr<engine::Tokenizer> tokenizer = *engine::Tokenizer::Load(kStories);
  engine::ModelConfig config = *engine::LoadModelConfig(kStories);
  absl::StatusOr<CalibrationTokens> Tokens(const CalibrationOptions& options) const {
    return TokensOfText(options, *tokenizer, config);
  }
  std::string Error(const CalibrationOptions& options) const {
    return std::string(Tokens(options).status().message());
  }
};

TEST(CalibrationTextTest, WindowsAreSpreadOverTheText) {
  const Fixture fixture;
  const auto tokens = fixture.Tokens({.data = kText, .num_samples = 5, .length = 100});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->ids.size(), 500U);
  const auto whole = fixture.Tokens({.data = kText, .num_samples = 1, .length = 2048});
  ASSERT_TRUE(whole.ok()) << whole.status();
  // The first window is where the text begins, the last one in the last fifth of it.
  EXPECT_TRUE(std::equal(tokens->ids.begin(), tokens->ids.begin() + 100, whole->ids.begin()));
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(tokens->ids[100 * i], *fixture.config.bos_token_id);
  const auto first = tokens->ids.begin();
  EXPECT_FALSE(std::equal(first + 400, first + 500, first + 300));
}

TEST(CalibrationTextTest, LengthIsWhatTheModelTakes) {
  Fixture fixture;
  fixture.config.max_position_embeddings = 64;
  const auto tokens = fixture.Tokens({.data = kText, .num_samples = 2, .length = 512});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->length, 64);
  EXPECT_EQ(tokens->ids.size(), 128U);
}

TEST(CalibrationTextTest, LinesOfJson) {
  const TempDir dir;
  const Fixture fixture;
  dir.Write("good.jsonl",
            "{\"text\": \"Once upon a time there was a dog, and a cat, and a very small mouse.\"}\n"
            "\n{\"text\": \"The cat sat on the mat and looked at the moon for a long time.\", "
            "\"n\": 1}");
  const auto tokens =
      fixture.Tokens({.data = dir.File("good.jsonl"), .num_samples = 2, .length = 16});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  // The second document begins inside the windows.
  EXPECT_EQ(std::count(tokens->ids.begin(), tokens->ids.end(), *fixture.config.bos_token_id), 3);
  dir.Write("bad.jsonl", "{\"text\": \"a\"}\n{\"story\": \"b\"}\n");
  EXPECT_THAT(fixture.Error({.data = dir.File("bad.jsonl")}), HasSubstr("bad.jsonl:2: a line"));
  dir.Write("broken.jsonl", "{\"text\": \"a\"}\n\n{\"text\": ");
  EXPECT_THAT(fixture.Error({.data = dir.File("broken.jsonl")}), HasSubstr("broken.jsonl:3"));
}

TEST(CalibrationTextTest, BadTextIsNamed) {
  const TempDir dir;
  const Fixture fixture;
  dir.Write("short.txt", "Once upon a time.");
  const std::string error = fixture.Error({.data = dir.File("short.txt")});
  EXPECT_THAT(error, HasSubstr("short.txt"));
  EXPECT_THAT(error, HasSubstr("too few for 128 samples of 512 tokens"));
  dir.Write("binary.txt", "\xff\xfe");
  EXPECT_THAT(fixture.Error({.data = dir.File("binary.txt")}), HasSubstr("binary.txt"));
  EXPECT_EQ(fixture.Tokens({.data = dir.File("none")}).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Validate(CalibrationOptions{.num_samples = 0}).message()),
              HasSubstr("samples are 0, the limits are 1 and 65536"));
  EXPECT_THAT(std::string(Validate(CalibrationOptions{.length = 15}).message()),
              HasSubstr("length is 15"));
}

TEST(SelfGenerationTest, DependsOnTheSeedAlone) {
  const Fixture fixture;
  const auto generate = [&](int threads, uint64_t seed, int64_t num_samples) {
    ThreadPool pool(threads);
    const auto model = engine::Model::Load(kStories, {}, &pool);
    EXPECT_TRUE(model.ok()) << model.status();
    const auto tokens = GenerateTokens({.num_samples = num_samples, .length = 40, .seed = seed},
                                       *fixture.tokenizer, model->get(), nullptr, &pool);
    EXPECT_TRUE(tokens.ok()) << tokens.status();
    return tokens->ids;
  };
  const std::vector<int32_t> ids = generate(1, 7, 3);
  ASSERT_EQ(ids.size(), 120U);
  EXPECT_EQ(generate(3, 7, 3), ids);
  EXPECT_NE(generate(1, 8, 3), ids);
  // A sequence is the same whatever else is written at the time.
  const std::vector<int32_t> fewer = generate(1, 7, 2);
  EXPECT_TRUE(std::equal(fewer.begin(), fewer.end(), ids.begin()));
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(ids[40 * i], *fixture.config.bos_token_id);
  const std::string text = *fixture.tokenizer->Decode(ids, true);
  EXPECT_GT(std::count(text.begin(), text.end(), ' '), 60) << text;
}

}  // namespace
}  // namespace nibble::quantize
