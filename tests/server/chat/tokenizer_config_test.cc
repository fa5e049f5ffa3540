// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/tokenizer_config.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;

class TokenizerConfigTest : public ::testing::Test {
 protected:
  nibble::testing::TempDir dir_;
};

TEST_F(TokenizerConfigTest, BundledModelHasTemplateAndTokens) {
  const auto config = LoadTokenizerConfig(NIBBLE_SOURCE_DIR "/models/stories-llama");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->chat_template, HasSubstr("add_generation_prompt"));
  EXPECT_EQ(config->template_variables["bos_token"], "<|begin_of_text|>");
}

TEST_F(TokenizerConfigTest, AbsentFilesGiveEmptyValues) {
  const auto config = LoadTokenizerConfig(dir_.path());
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->chat_template, "");
  EXPECT_TRUE(config->template_variables.empty());
}

TEST_F(TokenizerConfigTest, TokensMayBeObjects) {
  const auto config =
      ParseTokenizerConfig(R"({"bos_token": {"content": "<s>"}, "eos_token": null})", "x");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->template_variables["bos_token"], "<s>");
  EXPECT_FALSE(config->template_variables.contains("eos_token"));
}

TEST_F(TokenizerConfigTest, NamedTemplatesUseTheDefault) {
  const auto config = ParseTokenizerConfig(
      R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})",
      "x");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->chat_template, "d");
}

TEST_F(TokenizerConfigTest, TemplateFilesCountBeforeTheConfig) {
  dir_.Write("tokenizer_config.json", R"({"chat_template": "config"})");
  dir_.Write("chat_template.json", R"({"chat_template": "json"})");
  EXPECT_EQ(LoadTokenizerConfig(dir_.path())->chat_template, "json");
  dir_.Write("chat_template.jinja", "jinja");
  EXPECT_EQ(LoadTokenizerConfig(dir_.path())->chat_template, "jinja");
}

TEST_F(TokenizerConfigTest, MalformedFilesAreErrors) {
  for (const char* text :
       {"[", "[]", R"({"bos_token": 7})", R"({"chat_template": 7})", R"({"chat_template": []})"}) {
    EXPECT_EQ(ParseTokenizerConfig(text, "file").status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
  dir_.Write("chat_template.json", "{}");
  EXPECT_FALSE(LoadTokenizerConfig(dir_.path()).ok());
}

}  // namespace
}  // namespace nibble::server
