// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Every style of tokenizer against what the Python libraries recorded (tests/fixtures/tokenizers).
#include "engine/tokenizer/tokenizer.h"

#include <vector>

#include "base/utf8.h"
#include "tests/engine/tokenizer/fixtures.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

class TokenizerTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(FixtureDir(GetParam()));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = std::move(loaded).value();
    cases_ = ReadJsonFixture(FixtureDir(GetParam()) + "/cases.json");
    // SentencePiece itself never shows control pieces.
    skip_special_ = GetParam().starts_with("spm_");
  }

  std::vector<std::vector<int32_t>> RandomSequences(uint32_t seed, int count) const {
    testing::Random random(seed);
    std::vector<std::vector<int32_t>> sequences;
    for (int index = 0; index < count; ++index) {
      std::vector<int32_t> ids;
      for (int64_t length = random.Int(0, 20); length > 0; --length) {
        ids.push_back(static_cast<int32_t>(random.Int(0, tokenizer_->vocab_size() - 1)));
      }
      sequences.push_back(std::move(ids));
    }
    return sequences;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  nlohmann::json cases_;
  bool skip_special_ = false;
};

TEST_P(TokenizerTest, EncodesLikeTheLibrary) {
  ASSERT_GT(cases_["encode"].size(), 200U);
  for (const auto& item : cases_["encode"]) {
    const auto text = item["text"].get<std::string>();
    const auto ids = tokenizer_->Encode(text, false);
    ASSERT_TRUE(ids.ok()) << ids.status() << " for " << item["text"].dump(-1, ' ', true);
    EXPECT_EQ(*ids, item["ids"].get<std::vector<int32_t>>()) << item["text"].dump(-1, ' ', true);
    const auto special_ids = tokenizer_->Encode(text, true);
    ASSERT_TRUE(special_ids.ok()) << special_ids.status();
    EXPECT_EQ(*special_ids, item["special_ids"].get<std::vector<int32_t>>())
        << item["text"].dump(-1, ' ', true);
  }
}

TEST_P(TokenizerTest, DecodesLikeTheLibrary) {
  ASSERT_GT(cases_["decode"].size(), 50U);
  for (const auto& item : cases_["decode"]) {
    std::vector<int32_t> ids = item["ids"].get<std::vector<int32_t>>();
    const auto text = tokenizer_->Decode(ids, skip_special_);
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, item["text"].get<std::string>()) << item.dump(-1, ' ', true);
  }
}

TEST_P(TokenizerTest, IncrementalDecodingGivesTheWholeTextInCompleteCharacters) {
  std::vector<std::vector<int32_t>> sequences = RandomSequences(3, 2000);
  for (const auto& item : cases_["encode"]) {
    sequences.push_back(item["special_ids"].get<std::vector<int32_t>>());
  }
  for (const std::vector<int32_t>& ids : sequences) {
    for (const bool skip : {false, true}) {
      IncrementalDecoder decoder(tokenizer_.get(), skip);
      std::string text;
      for (const int32_t id : ids) {
        const std::string piece = decoder.Append(id);
        EXPECT_TRUE(IsValidUtf8(piece));
        text += piece;
      }
      text += decoder.Flush();
      EXPECT_EQ(decoder.Flush(), "");
      EXPECT_EQ(text, *tokenizer_->Decode(ids, skip)) << ::testing::PrintToString(ids);
    }
  }
}

TEST_P(TokenizerTest, IncrementalDecodingAfterAPromptContinuesItsText) {
  for (const std::vector<int32_t>& ids : RandomSequences(4, 1000)) {
    const size_t cut = ids.size() / 2;
    const std::span<const int32_t> prompt = std::span(ids).first(cut);
    IncrementalDecoder decoder(tokenizer_.get(), true, prompt);
    std::string text;
    for (const int32_t id : std::span(ids).subspan(cut)) text += decoder.Append(id);
    text += decoder.Flush();
    // Nothing of the prompt comes out, except the bytes of a character that it left unfinished.
    const std::string whole = *tokenizer_->Decode(ids, true);
    const std::string before = *tokenizer_->Decode(prompt, true);
    if (before.ends_with("\xef\xbf\xbd")) continue;
    EXPECT_EQ(before + text, whole) << ::testing::PrintToString(ids);
  }
}

TEST_P(TokenizerTest, TokensAndIdsMapBothWays) {
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const std::string token = tokenizer_->IdToToken(id);
    ASSERT_FALSE(token.empty()) << id;
    EXPECT_EQ(tokenizer_->TokenToId(token), id) << token;
  }
  EXPECT_EQ(tokenizer_->TokenToId("no such token"), std::nullopt);
  for (const int32_t id : {-1, static_cast<int32_t>(tokenizer_->vocab_size()), INT32_MAX}) {
    EXPECT_EQ(tokenizer_->IdToToken(id), "");
    EXPECT_EQ(tokenizer_->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer_->IsSpecial(id));
    const std::vector<int32_t> ids = {id};
    EXPECT_EQ(tokenizer_->Decode(ids, false).status().code(), absl::StatusCode::kInvalidArgument);
    IncrementalDecoder decoder(tokenizer_.get(), false);
    EXPECT_EQ(decoder.Append(id) + decoder.Flush(), "");
  }
}

TEST_P(TokenizerTest, RefusesInvalidUtf8) {
  for (const char* bad : {"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\x80", "ok \xf4\x90\x80\x80"}) {
    EXPECT_EQ(tokenizer_->Encode(bad, true).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// A quadratic algorithm would need hours for these.
TEST_P(TokenizerTest, LongTextsWithoutABreakEndInTime) {
  std::string mixed;
  testing::Random random(9);
  while (mixed.size() < 200'000) mixed += static_cast<char>('a' + random.Int(0, 25));
  std::string marks = "a";  // combining marks in descending class: worst for canonical ordering
  for (int index = 0; index < 30'000; ++index) {
    marks += index % 2 == 0 ? "\xcc\x81" : "\xcc\x96";
  }
  for (const std::string& text : {mixed, marks, std::string(200'000, 'a'),
                                  std::string(200'000, ' '), std::string(200'000, '\n')}) {
    const auto ids = tokenizer_->Encode(text, false);
    ASSERT_TRUE(ids.ok()) << ids.status();
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerTest, ::testing::ValuesIn(FixtureNames()),
                         [](const auto& test_info) { return test_info.param; });

TEST(BundledTokenizerTest, MatchesTheModelsReference) {
  const std::string dir = NIBBLE_SOURCE_DIR "/models/stories-llama";
  const auto tokenizer = Tokenizer::Load(dir);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const nlohmann::json reference = ReadJsonFixture(dir + "/reference.json");
  ASSERT_FALSE(reference["tokenizer"].empty());
  for (const auto& item : reference["tokenizer"]) {
    EXPECT_EQ(*(*tokenizer)->Encode(item["text"].get<std::string>(), false),
              item["ids"].get<std::vector<int32_t>>())
        << item["text"];
  }
  ASSERT_FALSE(reference["chat"].empty());
  for (const auto& item : reference["chat"]) {
    EXPECT_EQ(*(*tokenizer)->Encode(item["rendered"].get<std::string>(), false),
              item["ids"].get<std::vector<int32_t>>())
        << item["rendered"];
  }
  for (const auto& item : reference["prompts"]) {
    EXPECT_EQ(*(*tokenizer)->Encode(item["text"].get<std::string>(), true),
              item["ids"].get<std::vector<int32_t>>());
    EXPECT_EQ(*(*tokenizer)->Decode(item["greedy_ids"].get<std::vector<int32_t>>(), true),
              item["greedy_text"].get<std::string>());
  }
  EXPECT_TRUE((*tokenizer)->IsSpecial(*(*tokenizer)->TokenToId("<|user|>")));
}

TEST(IncrementalDecoderTest, HoldsBackUnfinishedCharactersOnly) {
  const auto tokenizer = Tokenizer::Load(FixtureDir("llama2"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto byte = [&](const char* token) { return *(*tokenizer)->TokenToId(token); };
  IncrementalDecoder decoder(tokenizer->get(), true);
  EXPECT_EQ(decoder.Append(byte("<0xE4>")), "");
  EXPECT_EQ(decoder.Append(byte("<0xBD>")), "");
  EXPECT_EQ(decoder.Append(byte("<0xA0>")), "你");
  EXPECT_EQ(decoder.Append(byte("<0xE4>")), "");
  EXPECT_EQ(decoder.Append(byte("<0x41>")),
            "\xef\xbf\xbd"
            "A");
  EXPECT_EQ(decoder.Append(byte("<0xF0>")), "");
  EXPECT_EQ(decoder.Flush(), "\xef\xbf\xbd");

  const std::vector<int32_t> prompt = {byte("<0xE4>"), byte("<0xBD>")};
  IncrementalDecoder after(tokenizer->get(), true, prompt);
  EXPECT_EQ(after.Append(byte("<0xA0>")), "你");
  IncrementalDecoder silent(tokenizer->get(), true, prompt);
  EXPECT_EQ(silent.Flush(), "");
}

}  // namespace
}  // namespace nibble::engine
