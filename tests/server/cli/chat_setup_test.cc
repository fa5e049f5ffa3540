// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/chat_setup.h"

#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class ChatSetupTest : public ::testing::Test {
 protected:
  ChatSetupTest() {
    config_.model.model = dir_.path();
    Write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_.path() + "/" + name) << text;
  }
  void Give(const std::string& text) {
    Write("given.jinja", text);
    config_.chat_template = dir_.path() + "/given.jinja";
  }
  std::string Refusal() { return std::string(SetUpChat(config_).status().message()); }

  nibble::testing::TempDir dir_;
  server::ServeConfig config_;
};

TEST_F(ChatSetupTest, AModelMayHaveNone) {
  const auto chat = SetUpChat(config_);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->chat_template, nullptr);
  EXPECT_EQ(chat->template_variables["bos_token"], "<s>");
}

TEST_F(ChatSetupTest, WhatIsGivenIsTried) {
  Give("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}");
  EXPECT_EQ(Refusal(), "");
  EXPECT_NE(SetUpChat(config_)->chat_template, nullptr);
  const std::string what = "--chat-template " + config_.chat_template + " cannot be used\n";
  Give("{% for m in messages %}");
  EXPECT_THAT(Refusal(), StartsWith(what));
  Give("");
  EXPECT_THAT(Refusal(), HasSubstr("there is: the file is empty"));
  Give("{{ raise_exception('never') }}");
  EXPECT_THAT(Refusal(), HasSubstr("of one user's message it makes an error"));
  EXPECT_THAT(Refusal(), HasSubstr("never"));
  Give("# A text that is no template");
  EXPECT_THAT(Refusal(), HasSubstr("a user's message is not in what it makes of it"));
  EXPECT_THAT(Refusal(), HasSubstr("try: leaving the option out"));
  config_.chat_template = dir_.path() + "/no";
  EXPECT_THAT(Refusal(), StartsWith("--chat-template " + dir_.path() + "/no cannot be used\n"));
}

TEST_F(ChatSetupTest, TheModelsOwnMustBeReadable) {
  Write("chat_template.jinja", "{% if %}");
  EXPECT_THAT(Refusal(), HasSubstr("the model's chat template cannot be used\n"));
  EXPECT_THAT(Refusal(), HasSubstr("try: --chat-template FILE"));
  // Completions need none, so that it may be one for other messages.
  Write("chat_template.jinja", "{{ raise_exception('only with tools') }}");
  EXPECT_EQ(Refusal(), "");
}

}  // namespace
}  // namespace nibble::cli
