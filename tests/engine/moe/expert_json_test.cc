// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/moe/expert_layout.h"
#include "engine/moe/expert_load.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct BadText {
  const char* text;
  const char* message;
};

TEST(ExpertLayoutJson, RoundTrip) {
  const ExpertLayout layout = {
      .num_experts = 2, .num_slots = 3, .expert_of_slot = {0, 1, 1, 1, 0, 0}};
  const std::string text = Serialize(layout);
  EXPECT_EQ(text,
            R"({"num_experts": 2, "num_slots": 3, "expert_of_slot": [[0, 1, 1], [1, 0, 0]]})");
  const auto parsed = ParseExpertLayout(text, "layout.json");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->num_experts, 2);
  EXPECT_EQ(parsed->num_slots, 3);
  EXPECT_EQ(parsed->expert_of_slot, layout.expert_of_slot);
}

TEST(ExpertLayoutJson, Errors) {
  const BadText cases[] = {
      {"{", "malformed JSON"},
      {"[]", "holds array, must be an object"},
      {R"({"num_slots": 2, "expert_of_slot": [[0, 1]]})", "'num_experts' is missing"},
      {R"({"num_experts": 0, "num_slots": 2, "expert_of_slot": []})",
       "'num_experts' is 0, must be 1..4096"},
      {R"({"num_experts": 2, "num_slots": 1, "expert_of_slot": [[0]]})",
       "'num_slots' is 1, must be 2..4096"},
      {R"({"num_experts": 2, "num_slots": 18446744073709551615, "expert_of_slot": []})",
       "'num_slots' is 18446744073709551615, must be 2..4096"},
      {R"({"num_experts": 2.0, "num_slots": 2, "expert_of_slot": []})",
       "'num_experts' is number, must be an integer"},
      {R"({"num_experts": 2, "num_slots": 2})", "'expert_of_slot' is missing, must be an array"},
      {R"({"num_experts": 2, "num_slots": 2, "expert_of_slot": []})",
       "'expert_of_slot' has 0 rows, must have 1..1024"},
      {R"({"num_experts": 2, "num_slots": 2, "expert_of_slot": [[0, 1], [1]]})",
       "'expert_of_slot' of layer 1 is array of 1, must be an array of 2"},
      {R"({"num_experts": 2, "num_slots": 2, "expert_of_slot": [[0, 2]]})",
       "'expert_of_slot[0][1]' is 2, must be 0..1"},
      {R"({"num_experts": 2, "num_slots": 2, "expert_of_slot": [[0, 1], [0, -1]]})",
       "'expert_of_slot[1][1]' is -1, must be 0..1"},
      {R"({"num_experts": 2, "num_slots": 2, "expert_of_slot": [[0, 1], [1, 1]]})",
       "no slot for expert 0 of layer 1"},
  };
  for (const BadText& bad : cases) {
    const auto parsed = ParseExpertLayout(bad.text, "layout.json");
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << bad.text;
    const std::string message(parsed.status().message());
    EXPECT_THAT(message, StartsWith("layout.json: "));
    EXPECT_THAT(message, HasSubstr(bad.message));
  }
}

TEST(ExpertLoadJson, RoundTrip) {
  const ExpertLoad load = {
      .num_layers = 2, .num_experts = 2, .tokens = {0, 9223372036854775807U, 3, 4}};
  const std::string text = Serialize(load);
  EXPECT_EQ(text,
            R"({"num_layers": 2, "num_experts": 2, "tokens": [[0, 9223372036854775807], [3, 4]]})");
  const auto parsed = ParseExpertLoad(text, "load.json");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->num_layers, 2);
  EXPECT_EQ(parsed->num_experts, 2);
  EXPECT_EQ(parsed->tokens, load.tokens);
}

TEST(ExpertLoadJson, Errors) {
  const BadText cases[] = {
      {"[1]", "holds array"},
      {R"({"num_experts": 2, "tokens": [[1, 2]]})", "'num_layers' is missing"},
      {R"({"num_layers": 2, "num_experts": 2, "tokens": [[1, 2]]})",
       "'tokens' has 1 rows, 'num_layers' is 2"},
      {R"({"num_layers": 1, "num_experts": 2, "tokens": [1, 2]})",
       "'tokens' of layer 0 is number of 1, must be an array of 2"},
      {R"({"num_layers": 1, "num_experts": 2, "tokens": [[1, -2]]})",
       "'tokens[0][1]' is -2, must be 0.."},
      {R"({"num_layers": 1, "num_experts": 2, "tokens": [[1, 9223372036854775808]]})",
       "'tokens[0][1]' is 9223372036854775808, must be 0..9223372036854775807"},
      {R"({"num_layers": 1025, "num_experts": 2, "tokens": []})",
       "'num_layers' is 1025, must be 1..1024"},
  };
  for (const BadText& bad : cases) {
    const auto parsed = ParseExpertLoad(bad.text, "load.json");
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << bad.text;
    const std::string message(parsed.status().message());
    EXPECT_THAT(message, StartsWith("load.json: "));
    EXPECT_THAT(message, HasSubstr(bad.message));
  }
}

}  // namespace
}  // namespace nibble::engine
