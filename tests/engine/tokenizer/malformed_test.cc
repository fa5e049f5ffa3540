// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Broken and unsupported files: an error that names file and element, never a crash or a guess.
#include <string>

#include "gmock/gmock.h"

#include "engine/tokenizer/sentencepiece_tokenizer.h"
#include "engine/tokenizer/tokenizer_json.h"
#include "tests/engine/tokenizer/fixtures.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

json SmallTokenizer() {
  return json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}})");
}

std::string LoadError(const json& document, const std::string& config = "") {
  const auto tokenizer = LoadTokenizerJson(document.dump(), config);
  if (tokenizer.ok()) return "loaded";
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tokenizer.status().message());
}

// The error when the element at `pointer` is replaced by `value`.
std::string ErrorWith(const std::string& pointer, const json& value) {
  json document = SmallTokenizer();
  document[json::json_pointer(pointer)] = value;
  return LoadError(document);
}

TEST(MalformedTokenizerJsonTest, TheUnbrokenOneLoads) {
  EXPECT_EQ(LoadError(SmallTokenizer()), "loaded");
  const auto tokenizer = LoadTokenizerJson(SmallTokenizer().dump(), "");
  EXPECT_EQ(*(*tokenizer)->Encode("abca<s>", true), (std::vector<int32_t>{2, 3, 0, 4}));
}

TEST(MalformedTokenizerJsonTest, Vocabulary) {
  const auto vocab = "tokenizer.json: model.vocab";
  EXPECT_THAT(ErrorWith("/model/vocab", json::array()), HasSubstr(vocab));
  EXPECT_THAT(ErrorWith("/model/vocab/c", -1), AllOf(HasSubstr(vocab), HasSubstr("-1")));
  EXPECT_THAT(ErrorWith("/model/vocab/c", 1.5), AllOf(HasSubstr("\"c\""), HasSubstr("1.5")));
  EXPECT_THAT(ErrorWith("/model/vocab/c", "3"), HasSubstr("\"c\""));
  EXPECT_THAT(ErrorWith("/model/vocab/c", 1ULL << 40), HasSubstr("1099511627776"));
  EXPECT_THAT(ErrorWith("/model/vocab/c", ~0ULL), HasSubstr("18446744073709551615"));
  EXPECT_THAT(ErrorWith("/model/vocab/c", 2), AllOf(HasSubstr("share id 2"), HasSubstr("\"c\"")));
}

TEST(MalformedTokenizerJsonTest, Merges) {
  for (const json& merge : {json("a"), json("a b c"), json(7), json({"a"}), json({"a", 1}),
                            json({"a", "b", "c"}), json(nullptr)}) {
    EXPECT_THAT(ErrorWith("/model/merges/0", merge), HasSubstr("model.merges[0]"));
  }
  EXPECT_THAT(ErrorWith("/model/merges/0", "a x"), HasSubstr("\"x\" is not in the vocabulary"));
  EXPECT_THAT(ErrorWith("/model/merges/0", "b a"), HasSubstr("\"ba\" is not in the vocabulary"));
  EXPECT_THAT(ErrorWith("/model/merges", json::object()), HasSubstr("model.merges"));
  EXPECT_EQ(ErrorWith("/model/merges/0", json({"a", "b"})), "loaded");
}

TEST(MalformedTokenizerJsonTest, ModelOptions) {
  EXPECT_THAT(ErrorWith("/model", nullptr), HasSubstr("tokenizer.json: model: want an object"));
  EXPECT_THAT(ErrorWith("/model/type", "WordPiece"), HasSubstr("\"WordPiece\" is not supported"));
  EXPECT_THAT(ErrorWith("/model/unk_token", "?"), HasSubstr("model.unk_token"));
  EXPECT_THAT(ErrorWith("/model/fuse_unk", 1), HasSubstr("model.fuse_unk"));
  EXPECT_THAT(ErrorWith("/model/dropout", 0.1), HasSubstr("model.dropout: 0.1"));
}

TEST(MalformedTokenizerJsonTest, UnsupportedPartsAreNamed) {
  const json unknown = {{"type", "Odd"}};
  for (const char* part : {"normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    EXPECT_THAT(ErrorWith(std::string("/") + part, unknown),
                AllOf(HasSubstr(part), HasSubstr("\"Odd\" is not supported")));
    EXPECT_THAT(ErrorWith(std::string("/") + part, 5), HasSubstr(part));
  }
  EXPECT_THAT(ErrorWith("/decoder", nullptr), HasSubstr("decoder"));
  EXPECT_THAT(
      ErrorWith("/decoder", {{"type", "Strip"}, {"content", "é"}, {"start", 1}, {"stop", 0}}),
      HasSubstr("decoder.content"));
  EXPECT_THAT(ErrorWith("/normalizer", {{"type", "Sequence"}, {"normalizers", {unknown}}}),
              HasSubstr("normalizer.normalizers[0]"));
  EXPECT_THAT(ErrorWith("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "////"}}),
              HasSubstr("normalizer.precompiled_charsmap"));
}

TEST(MalformedTokenizerJsonTest, Patterns) {
  const auto with_pattern = [](const std::string& pattern) {
    return ErrorWith("/pre_tokenizer", {{"type", "Split"},
                                        {"pattern", {{"Regex", pattern}}},
                                        {"behavior", "Isolated"},
                                        {"invert", false}});
  };
  EXPECT_EQ(with_pattern("a+"), "loaded");
  for (const char* bad : {"(", "[a", "a{2,1}", "(?<", "\\p{NoSuch}", "[a&&b]", "[a[b]]", "(?m)a",
                          "(?i-s:a)", "\\h", "(*UTF)", "a{,3}", "\\C", "\\"}) {
    EXPECT_THAT(with_pattern(bad), HasSubstr("pre_tokenizer.pattern.Regex")) << bad;
  }
  EXPECT_THAT(with_pattern(std::string(100'000, 'a')), HasSubstr("100000 bytes"));
}

TEST(MalformedTokenizerJsonTest, AHostilePatternIsAnErrorAndNotAHang) {
  json document = SmallTokenizer();
  document["pre_tokenizer"] = {{"type", "Split"},
                               {"pattern", {{"Regex", "(?:a|a|aa)+[xy]"}}},
                               {"behavior", "Isolated"},
                               {"invert", false}};
  const auto tokenizer = LoadTokenizerJson(document.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode(std::string(5000, 'a') + "b", false);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kResourceExhausted);
}

// What `Encode(text)` says when the tokenizer's `part` is `value`; "" when it works.
std::string EncodeError(const char* part, const json& value, const std::string& text) {
  json document = SmallTokenizer();
  document[part] = value;
  const auto tokenizer = LoadTokenizerJson(document.dump(), "");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  if (!tokenizer.ok()) return "not loaded";
  const auto ids = (*tokenizer)->Encode(text, false);
  if (ids.ok()) return "";
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kResourceExhausted);
  return std::string(ids.status().message());
}

json Repeat(const json& element, int count, const char* key) {
  json steps = json::array();
  for (int i = 0; i < count; ++i) steps.push_back(element);
  return {{"type", "Sequence"}, {key, steps}};
}

// Each step of these doubles or triples the text, so that they would fill any memory.
TEST(MalformedTokenizerJsonTest, GrowthIsLimitedWhateverTheSteps) {
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const json double_a = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  const std::string text = "aé你";
  const auto limited = AllOf(HasSubstr("text of 6"), HasSubstr("the limit is 65920"));
  EXPECT_THAT(EncodeError("pre_tokenizer", Repeat(bytes, 40, "pretokenizers"), text), limited);
  EXPECT_THAT(EncodeError("normalizer", Repeat({{"type", "ByteLevel"}}, 40, "normalizers"), text),
              limited);
  EXPECT_THAT(EncodeError("normalizer", Repeat(double_a, 40, "normalizers"), text), limited);
  // A limit per level would multiply: 64 at each of four levels.
  json nested = double_a;
  for (int level = 0; level < 4; ++level) nested = Repeat(nested, 5, "normalizers");
  EXPECT_THAT(EncodeError("normalizer", nested, text), limited);
  json nested_bytes = bytes;
  for (int level = 0; level < 4; ++level) nested_bytes = Repeat(nested_bytes, 5, "pretokenizers");
  EXPECT_THAT(EncodeError("pre_tokenizer", nested_bytes, text), limited);
  // Normalizers and pre-tokenizers share it, and a few steps of either are fine.
  EXPECT_EQ(EncodeError("pre_tokenizer", Repeat(bytes, 5, "pretokenizers"), text), "");
}

TEST(MalformedTokenizerJsonTest, GrowthIsLimitedWithinAStepAndOverTheParts) {
  const json swell = {
      {"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(1000, 'b')}};
  EXPECT_THAT(EncodeError("normalizer", swell, std::string(5000, 'a')),
              HasSubstr("text of 5000, the limit is 385536"));
  EXPECT_EQ(EncodeError("normalizer", swell, "a"), "");
  // Each part between added tokens gets a prefix: little by itself, but of one request.
  const json prefix = {{"type", "Prepend"}, {"prepend", std::string(1000, 'b')}};
  std::string parts;
  for (int i = 0; i < 500; ++i) parts += "a<s>";
  EXPECT_THAT(EncodeError("normalizer", prefix, parts), HasSubstr("text of 2000"));
}

TEST(MalformedTokenizerJsonTest, AddedTokens) {
  const auto added = [](const json& id, const json& content) {
    return ErrorWith("/added_tokens/0", {{"id", id}, {"content", content}, {"special", true}});
  };
  EXPECT_THAT(added(-1, "<s>"), HasSubstr("added_tokens[0].id: -1"));
  EXPECT_THAT(added(1 << 30, "<s>"), HasSubstr("added_tokens[0].id"));
  EXPECT_THAT(added("4", "<s>"), HasSubstr("added_tokens[0].id"));
  EXPECT_THAT(added(4, 7), HasSubstr("added_tokens[0].content"));
  EXPECT_THAT(added(3, "<s>"), HasSubstr("which is \"c\""));
  EXPECT_THAT(added(4, "c"), HasSubstr("has id 4, in the model's vocabulary 3"));
  EXPECT_THAT(ErrorWith("/added_tokens/1", {{"id", 4}, {"content", "<t>"}}),
              HasSubstr("share id 4"));
  EXPECT_THAT(ErrorWith("/added_tokens/1", {{"id", 5}, {"content", "<s>"}}), HasSubstr("4 and 5"));
  EXPECT_THAT(LoadError(SmallTokenizer(), R"({"added_tokens_decoder": {"x": {"content": "y"}}})"),
              HasSubstr("tokenizer_config.json: added_tokens_decoder: id \"x\""));
  EXPECT_EQ(LoadError(SmallTokenizer(), R"({"added_tokens_decoder": {"9": {"content": "y"}}})"),
            "loaded");
}

TEST(MalformedTokenizerJsonTest, PostProcessor) {
  const auto with_ids = [](const json& ids) {
    return ErrorWith(
        "/post_processor",
        {{"type", "TemplateProcessing"},
         {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
         {"special_tokens", {{"<s>", {{"ids", ids}}}}}});
  };
  EXPECT_EQ(with_ids({4}), "loaded");
  EXPECT_THAT(with_ids({99}), HasSubstr("id 99 is no token's"));
  EXPECT_THAT(with_ids({-4}), HasSubstr("special_tokens.<s>.ids[0]: -4"));
}

TEST(MalformedTokenizerJsonTest, JsonItself) {
  for (const char* text : {"", "{", "[]", "null", "{\"model\": {}}", "{\"model\": \xff}"}) {
    const auto tokenizer = LoadTokenizerJson(text, "");
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.json")) << text;
  }
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_THAT(std::string(LoadTokenizerJson(deep, "").status().message()), HasSubstr("deeper"));
}

TEST(MalformedSentencePieceTest, TruncatedAndFlippedFilesNeverCrash) {
  for (const char* name : {"spm_bpe", "spm_unigram"}) {
    const std::string model = ReadFixture(FixtureDir(name) + "/tokenizer.model");
    ASSERT_TRUE(LoadSentencePiece(model, "").ok());
    testing::Random random(5);
    for (int round = 0; round < 150; ++round) {
      std::string broken =
          model.substr(0, static_cast<size_t>(random.Int(0, static_cast<int64_t>(model.size()))));
      if (round % 2 == 0) broken = model;
      for (int flips = 0; flips < round % 7; ++flips) {
        const auto at = static_cast<size_t>(random.Int(0, static_cast<int64_t>(model.size()) - 1));
        if (at < broken.size()) broken[at] = static_cast<char>(random.Int(0, 255));
      }
      const auto tokenizer = LoadSentencePiece(broken, "");
      if (!tokenizer.ok()) {
        EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.model"));
        continue;
      }
      const auto ids = (*tokenizer)->Encode("Once upon a time é 你 ﬁ e\xcc\x81...", true);
      if (ids.ok()) {
        EXPECT_TRUE((*tokenizer)->Decode(*ids, false).ok());
      }
    }
  }
}

TEST(MalformedSentencePieceTest, ErrorsNameTheElement) {
  const auto error = [](const std::string& model, const std::string& config) {
    return std::string(LoadSentencePiece(model, config).status().message());
  };
  const std::string model = ReadFixture(FixtureDir("spm_bpe") + "/tokenizer.model");
  EXPECT_THAT(error("", ""), HasSubstr("tokenizer.model: 0 unknown pieces"));
  // field 1 (pieces) with a piece of type 9.
  EXPECT_THAT(error(std::string("\x0a\x05\x0a\x01\x61\x18\x09", 7), ""),
              HasSubstr("pieces[0]: type 9"));
  EXPECT_THAT(error(std::string("\x0a\x7f\x0a", 3), ""), HasSubstr("127 bytes announced, 1 left"));
  // field 2 (trainer_spec) with model_type 3 (word).
  EXPECT_THAT(error(std::string("\x12\x02\x18\x03", 4), ""),
              HasSubstr("trainer_spec: model type 3"));
  EXPECT_THAT(error(model, R"({"bos_token": "<nope>"})"),
              HasSubstr("tokenizer_config.json: bos_token: \"<nope>\""));
  EXPECT_THAT(error(model, R"({"add_bos_token": 1})"), HasSubstr("add_bos_token"));
  EXPECT_THAT(error(model, R"({"added_tokens_decoder": {"1": {"content": "<x>"}}})"),
              HasSubstr("\"<x>\" has id 1"));
}

TEST(MalformedSentencePieceTest, AddedTokensAndLegacyBlank) {
  const std::string model = ReadFixture(FixtureDir("spm_bpe") + "/tokenizer.model");
  const std::string added =
      R"("added_tokens_decoder": {"800": {"content": "<|x|>", "special": true}})";
  const auto legacy = LoadSentencePiece(model, "{" + added + "}");
  const auto fresh = LoadSentencePiece(model, "{\"legacy\": false, " + added + "}");
  ASSERT_TRUE(legacy.ok() && fresh.ok()) << legacy.status() << fresh.status();
  const int32_t bos = *(*legacy)->TokenToId("<s>");
  const auto plain = *(*legacy)->Encode("dog", false);
  const auto twice = *(*legacy)->Encode("dog<|x|>dog", true);
  ASSERT_EQ(twice.size(), plain.size() * 2 + 2);
  EXPECT_EQ(twice[0], bos);
  EXPECT_EQ(twice[plain.size() + 1], 800);
  EXPECT_EQ(twice.back(), plain.back());
  EXPECT_EQ(*(*legacy)->Decode(twice, true), "dog dog");
  const auto joined = *(*fresh)->Encode("dog<|x|>dog", true);
  EXPECT_EQ(*(*fresh)->Decode(joined, true), "dogdog");
}

}  // namespace
}  // namespace nibble::engine
