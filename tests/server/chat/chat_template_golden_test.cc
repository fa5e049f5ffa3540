// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Every case of tests/fixtures/chat_templates/goldens.json: what Python's jinja2 rendered, or how
// it failed (see make_goldens.py there).
#include <fstream>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "server/chat/chat_template.h"

namespace nibble::server {
namespace {

absl::StatusOr<std::string> ParseAndRender(const nlohmann::ordered_json& golden, int64_t now) {
  TemplateLimits limits;
  limits.max_milliseconds = std::numeric_limits<int64_t>::max();  // on any machine
  auto parsed = ChatTemplate::Parse(golden.at("template").get<std::string>(), limits);
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->Render(golden.at("variables"), now);
}

TEST(ChatTemplateGoldenTest, EveryCaseIsRenderedAsByJinja2) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/fixtures/chat_templates/goldens.json");
  ASSERT_TRUE(file.good());
  const auto goldens = nlohmann::ordered_json::parse(file);
  const auto now = goldens.at("now").get<int64_t>();
  ASSERT_GE(goldens.at("cases").size(), 100U);
  for (const auto& golden : goldens.at("cases")) {
    SCOPED_TRACE(golden.at("name").get<std::string>() + "\n" +
                 golden.at("template").get<std::string>());
    const absl::StatusOr<std::string> text = ParseAndRender(golden, now);
    if (golden.contains("error")) {
      ASSERT_FALSE(text.ok()) << "rendered: " << *text;
      EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(text.status().message()),
                  testing::HasSubstr(golden.at("error").get<std::string>()));
    } else {
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, golden.at("expected").get<std::string>());
    }
  }
}

}  // namespace
}  // namespace nibble::server
