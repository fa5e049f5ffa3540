// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/inspect_experts.h"

#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/json.h"
#include "tests/testing/temp_dir.h"

namespace nibble::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kName = "nibble:moe_expert_tokens_total";

std::string Line(int layer, int expert, const std::string& tokens) {
  return fmt::format("{}{{model_name=\"m\",layer=\"{}\",expert=\"{}\"}} {}\n", kName, layer, expert,
                     tokens);
}

TEST(ExpertLoadOfMetricsTest, ReadsCounters) {
  const std::string text = std::string("# TYPE ") + kName + " counter\n" + Line(1, 0, "5") +
                           "other{layer=\"9\"} 1\n" + Line(1, 2, "7e3") + Line(2, 1, "0");
  const auto load = ExpertLoadOfMetrics(text, "here");
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_EQ(load->num_layers, 3);
  EXPECT_EQ(load->num_experts, 3);
  EXPECT_EQ(load->at(0, 0), 0U);  // a dense layer
  EXPECT_EQ(load->at(1, 0), 5U);
  EXPECT_EQ(load->at(1, 2), 7000U);
}

TEST(ExpertLoadOfMetricsTest, WhatIsNoCountIsRefused) {
  EXPECT_THAT(std::string(ExpertLoadOfMetrics("up 1\n", "here").status().message()),
              AllOf(HasSubstr("here"), HasSubstr("--max-expert-series")));
  for (const std::string& bad :
       {Line(1 << 20, 0, "1"), Line(0, 1 << 20, "1"), Line(-1, 0, "1"), Line(0, 0, "-1"),
        Line(0, 0, "nan"), Line(0, 0, "1e30"), Line(0, 0, ""), std::string(kName) + "{",
        std::string(kName) + "{layer=\"1} 3", std::string(kName) + "{layer=\"\",expert=\"\"} 3"}) {
    EXPECT_EQ(ExpertLoadOfMetrics(bad, "here").status().code(), absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

class InspectExpertsTest : public ::testing::Test {
 protected:
  InspectExpertsTest() {
    options_.experts = folder_.path() + "/load.json";
    std::ofstream(options_.experts)
        << R"({"num_layers": 2, "num_experts": 4, "tokens": [[0, 0, 0, 0], [30, 10, 10, 10]]})";
  }

  std::string Text() {
    ::testing::internal::CaptureStdout();
    const absl::Status status = InspectExperts(options_);
    std::string text = ::testing::internal::GetCapturedStdout();
    EXPECT_TRUE(status.ok()) << status;
    return text;
  }

  testing::TempDir folder_;
  InspectOptions options_;
};

TEST_F(InspectExpertsTest, Table) {
  const std::string text = Text();
  EXPECT_THAT(text, HasSubstr("2 layers, 4 experts"));
  EXPECT_THAT(text, HasSubstr("    0         none"));
  EXPECT_THAT(text, HasSubstr("    1           60   50.0  16.7  16.7  16.7     0.750     0.500\n"));
}

TEST_F(InspectExpertsTest, JsonWithAPlacement) {
  options_.json = true;
  options_.expert_parallel_size = 2;
  options_.num_redundant_experts = 2;
  const auto json = ParseJson(Text());
  ASSERT_TRUE(json.ok()) << json.status();
  const nlohmann::json& layer = json->at("layers").at(1);
  EXPECT_EQ(layer.at("tokens"), 60);
  EXPECT_EQ(layer.at("experts"), nlohmann::json({30, 10, 10, 10}));
  EXPECT_NEAR(layer.at("balancedness").at("EP2").get<double>(), 0.75, 1e-9);
  EXPECT_NEAR(layer.at("balancedness").at("EP2 +2").get<double>(), 1.0, 0.2);
}

TEST_F(InspectExpertsTest, WrongOptionsAreRefused) {
  options_.model = "models/stories-llama";
  options_.tensors = true;
  options_.expert_parallel_size = 65;
  EXPECT_THAT(std::string(InspectExperts(options_).message()),
              AllOf(HasSubstr("no MODEL"), HasSubstr("--tensors"),
                    HasSubstr("--expert-parallel-size is 65, want 0 to 64")));
  options_.model.clear();
  options_.tensors = false;
  options_.expert_parallel_size = 3;
  EXPECT_THAT(std::string(InspectExperts(options_).message()), HasSubstr("multiples of 3"));
  options_.experts = "http://127.0.0.1:1";
  EXPECT_THAT(std::string(InspectExperts(options_).message()), HasSubstr("127.0.0.1:1"));
}

}  // namespace
}  // namespace nibble::cli
