// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/dataset.h"

#include <map>
#include <numeric>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble::client {
namespace {

using ::testing::HasSubstr;

// Tokens are letters; "q" and "u" together are read as one token.
class LetterCodec final : public TextCodec {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text) override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text.substr(i, 2) == "qu") {
        ids.push_back(26);
        ++i;
      } else {
        ids.push_back(text[i] - 'a');
      }
    }
    return ids;
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids) override {
    std::string text;
    for (const int32_t id : ids) {
      text += id == 26 ? "qu" : std::string(1, static_cast<char>('a' + id));
    }
    return text;
  }
  absl::StatusOr<std::vector<int32_t>> PlainTokens() override {
    ++num_asked;
    std::vector<int32_t> ids(27);
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }
  int num_asked = 0;
};

class DatasetTest : public ::testing::Test {
 protected:
  Dataset Make(const DatasetOptions& options, int64_t num_warmups = 0, bool as_text = false) {
    auto dataset = MakeDataset(options, num_warmups, as_text, &codec_);
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return dataset.ok() ? *std::move(dataset) : Dataset{};
  }
  std::string WriteFile(const std::string& text) {
    dir_.Write("dataset_test.jsonl", text);
    return dir_.File("dataset_test.jsonl");
  }

  LetterCodec codec_;
  nibble::testing::TempDir dir_;
};

TEST_F(DatasetTest, RandomLengthsStayInTheirRange) {
  const Dataset dataset = Make({.num_prompts = 200,
                                .random_input_len = 20,
                                .random_output_len = 10,
                                .random_range_ratio = 0.5});
  ASSERT_EQ(dataset.requests.size(), 200u);
  std::set<size_t> inputs;
  std::set<int64_t> outputs;
  for (const LoadRequest& request : dataset.requests) {
    inputs.insert(request.token_ids.size());
    outputs.insert(request.output_tokens);
    for (const int32_t id : request.token_ids) EXPECT_LT(id, 27);
  }
  EXPECT_EQ(*inputs.begin(), 10u);
  EXPECT_EQ(*inputs.rbegin(), 30u);
  EXPECT_EQ(*outputs.begin(), 5);
  EXPECT_EQ(*outputs.rbegin(), 15);
}

TEST_F(DatasetTest, SeedsDecideAndWarmupsAreOthers) {
  DatasetOptions options{.num_prompts = 5, .random_input_len = 8, .random_output_len = 3};
  const Dataset dataset = Make(options, 2);
  ASSERT_EQ(dataset.requests.size(), 5u);
  ASSERT_EQ(dataset.warmups.size(), 2u);
  const Dataset again = Make(options, 0);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(dataset.requests[i].token_ids, again.requests[i].token_ids);
    EXPECT_NE(dataset.requests[i].token_ids, dataset.warmups[0].token_ids);
    EXPECT_EQ(dataset.requests[i].output_tokens, 3);
  }
  options.seed = 1;
  EXPECT_NE(Make(options).requests[0].token_ids, dataset.requests[0].token_ids);
}

TEST_F(DatasetTest, RandomPrefixIsShared) {
  const Dataset dataset = Make({.num_prompts = 3, .random_input_len = 4, .random_prefix_len = 6});
  for (const LoadRequest& request : dataset.requests) {
    ASSERT_EQ(request.token_ids.size(), 10u);
    EXPECT_TRUE(std::equal(request.token_ids.begin(), request.token_ids.begin() + 6,
                           dataset.requests[0].token_ids.begin()));
  }
  EXPECT_NE(dataset.requests[0].token_ids, dataset.requests[1].token_ids);
}

TEST_F(DatasetTest, TextsReadAsManyTokensAsAskedFor) {
  const Dataset dataset = Make({.num_prompts = 100, .random_input_len = 60}, 0, true);
  for (const LoadRequest& request : dataset.requests) {
    EXPECT_TRUE(request.token_ids.empty());
    EXPECT_EQ(codec_.Encode(request.text)->size(), 60u) << request.text;
  }
}

TEST_F(DatasetTest, PrefixesAreUsedEquallyOften) {
  DatasetOptions options{.name = "prefix_repetition",
                         .num_prompts = 20,
                         .prefix_len = 8,
                         .suffix_len = 4,
                         .num_prefixes = 5,
                         .prefix_output_len = 9};
  const Dataset dataset = Make(options);
  std::map<std::vector<int32_t>, int> prefixes;
  for (const LoadRequest& request : dataset.requests) {
    EXPECT_EQ(request.token_ids.size(), 12u);
    EXPECT_EQ(request.output_tokens, 9);
    ++prefixes[{request.token_ids.begin(), request.token_ids.begin() + 8}];
  }
  EXPECT_EQ(prefixes.size(), 5u);
  for (const auto& [prefix, count] : prefixes) EXPECT_EQ(count, 4);
  options.disable_shuffle = true;
  EXPECT_NE(Make(options).requests[1].token_ids, dataset.requests[1].token_ids);
}

TEST_F(DatasetTest, FilesAreShuffledCutAndRepeated) {
  DatasetOptions options{.name = "custom",
                         .path = WriteFile("{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n"
                                           "{\"prompt\":\"c\"}\n{\"prompt\":\"d\"}\n"),
                         .num_prompts = 0,
                         .disable_shuffle = true,
                         .custom_output_len = 7};
  const auto texts = [&](const DatasetOptions& given) {
    std::string text;
    for (const LoadRequest& request : Make(given).requests) text += request.text;
    return text;
  };
  EXPECT_EQ(texts(options), "abcd");
  EXPECT_EQ(Make(options).requests[0].output_tokens, 7);
  options.num_prompts = 3;
  EXPECT_EQ(texts(options), "abc");
  options.num_prompts = 10;
  EXPECT_EQ(texts(options), "abcdabcdab");
  options.no_oversample = true;
  EXPECT_EQ(texts(options), "abcd");
  options.disable_shuffle = false;
  options.seed = 3;
  const std::string shuffled = texts(options);
  EXPECT_EQ(shuffled, texts(options));
  EXPECT_NE(shuffled, "abcd");
  EXPECT_EQ(codec_.num_asked, 0);  // no server is asked for what a file says
}

TEST_F(DatasetTest, AFileWarmsUpWithWhatIsNotMeasured) {
  DatasetOptions options{.name = "custom",
                         .path = WriteFile("{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n"
                                           "{\"prompt\":\"c\"}\n{\"prompt\":\"d\"}\n"),
                         .num_prompts = 2,
                         .disable_shuffle = true};
  const Dataset dataset = Make(options, 2);
  ASSERT_EQ(dataset.warmups.size(), 2u);
  EXPECT_EQ(dataset.warmups[0].text + dataset.warmups[1].text, "cd");
  EXPECT_FALSE(dataset.warmups_are_measured);
  EXPECT_TRUE(Make(options, 3).warmups_are_measured);
  options.num_prompts = 0;
  EXPECT_TRUE(Make(options, 1).warmups_are_measured);
  EXPECT_FALSE(Make(options, 0).warmups_are_measured);
}

TEST_F(DatasetTest, MakingTextsIsSeenAndCanBeInterrupted) {
  const DatasetOptions options{.num_prompts = 5, .random_input_len = 6};
  std::atomic<bool> interrupted{false};
  std::vector<int64_t> seen;
  const DatasetHooks hooks{.interrupted = &interrupted,
                           .progress = [&](int64_t done, int64_t total) {
                             EXPECT_EQ(total, 6);
                             seen.push_back(done);
                             interrupted = done == 3;
                           }};
  const auto dataset = MakeDataset(options, 1, /*as_text=*/true, &codec_, hooks);
  EXPECT_TRUE(absl::IsCancelled(dataset.status())) << dataset.status();
  EXPECT_EQ(seen, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(Make(options, 0, /*as_text=*/true).requests[0].prompt_length(), 6);
  EXPECT_EQ(Make(options).requests[0].prompt_length(), 6);
}

TEST_F(DatasetTest, PromptsThatDoNotFitIntoMemoryAreRefused) {
  const DatasetOptions trace{
      .name = "timed-trace",
      .path = WriteFile([] {
        std::string lines;
        for (int i = 0; i < 300; ++i) {
          lines += "{\"timestamp\":0,\"input_tokens\":4000000,\"output_tokens\":2}\n";
        }
        return lines;
      }()),
      .num_prompts = 0};
  EXPECT_THAT(std::string(MakeDataset(trace, 0, false, &codec_).status().message()),
              HasSubstr("1200000000 tokens together, the limit is 1073741824"));
  EXPECT_EQ(codec_.num_asked, 0);
}

TEST_F(DatasetTest, TracesOfLengthsGetRandomPrompts) {
  const Dataset dataset =
      Make({.name = "timed-trace",
            .path = WriteFile("{\"timestamp\":0,\"input_tokens\":9,\"output_tokens\":2}\n"
                              "{\"timestamp\":1,\"prompt\":\"abc\",\"output_tokens\":2}\n"),
            .num_prompts = 5});
  ASSERT_EQ(dataset.requests.size(), 2u);  // a trace is not gone through again
  EXPECT_EQ(dataset.requests[0].token_ids.size(), 9u);
  EXPECT_EQ(dataset.requests[1].text, "abc");
}

TEST_F(DatasetTest, ErrorsOfFilesNameThem) {
  const DatasetOptions options{.name = "custom", .path = WriteFile("{}\n")};
  const auto bad = MakeDataset(options, 0, false, &codec_);
  EXPECT_THAT(std::string(bad.status().message()),
              HasSubstr("dataset_test.jsonl: line 1: there is no prompt"));
  const auto none = MakeDataset({.name = "custom", .path = "no/such.jsonl"}, 0, false, &codec_);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  const DatasetOptions ids{.name = "custom", .path = WriteFile("{\"prompt\":[1]}\n")};
  EXPECT_THAT(std::string(MakeDataset(ids, 0, true, &codec_).status().message()),
              HasSubstr("token ids are for completions"));
}

TEST(DatasetOptionsTest, ViolationsNameOptionAndLimit) {
  const auto all = [](const DatasetOptions& options) {
    std::vector<std::string> violations;
    options.Validate(&violations);
    std::string text;
    for (const std::string& line : violations) text += line + "\n";
    return text;
  };
  EXPECT_EQ(all({}), "");
  EXPECT_THAT(all({.name = "sonnet"}), HasSubstr("--dataset-name is 'sonnet', want random"));
  EXPECT_THAT(all({.name = "custom"}), HasSubstr("needs --dataset-path"));
  EXPECT_THAT(all({.path = "a"}), HasSubstr("--dataset-path goes with"));
  EXPECT_THAT(all({.num_prompts = 0}), HasSubstr("--num-prompts is 0, want 1 to"));
  EXPECT_THAT(all({.random_input_len = -1}), HasSubstr("--random-input-len is -1"));
  EXPECT_THAT(all({.random_range_ratio = 1}), HasSubstr("--random-range-ratio is 1, want 0 to"));
  EXPECT_THAT(all({.random_input_len = 0}), HasSubstr("want a prompt"));
  EXPECT_THAT(all({.num_prompts = 10'000'000}),
              HasSubstr("--num-prompts 10000000 of 1024 tokens are 10240000000 tokens, the limit"));
  EXPECT_THAT(all({.num_prefixes = 0}), HasSubstr("--prefix-repetition-num-prefixes is 0"));
}

}  // namespace
}  // namespace nibble::client
