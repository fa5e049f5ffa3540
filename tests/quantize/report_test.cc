// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/report.h"

#include <cmath>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;

LayerReport SomeLayer() {
  return {.layer_idx = 3,
          .seconds = 1.5,
          .modules = {{.name = "model.layers.3.self_attn.o_proj",
                       .n = 4,
                       .k = 8,
                       .bits_per_weight = 4.25,
                       .weight_norm = 3.0,
                       .weight_error_before = 0.1,
                       .weight_error = 0.2,
                       .output_error_before = 0.06,
                       .output_error = 0.03,
                       .seconds = 0.25},
                      {.name = "model.layers.3.mlp.down_proj",
                       .n = 4,
                       .k = 24,
                       .bits_per_weight = 4.5,
                       .weight_norm = 4.0,
                       .weight_error_before = 0.1,
                       .weight_error = 0.1}},
          .sites = {{.name = "o",
                     .abs_max = 17.5,
                     .range = "middle",
                     .equalization = "mean^0.35",
                     .abs_max_after = 12.0}},
          .norm_tweak = NormTweakReport{.loss_before = 0.5, .loss_after = 0.25, .kept = true}};
}

TEST(ReportTest, LayersSurviveJson) {
  const nlohmann::ordered_json json = ToJson(SomeLayer());
  const auto back = LayerReportFromJson(nlohmann::json::parse(json.dump()));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(ToJson(*back), json);
  EXPECT_FALSE(back->modules[1].output_error.has_value());
  nlohmann::json broken = nlohmann::json::parse(json.dump());
  broken["modules"][0]["n"] = "many";
  EXPECT_EQ(LayerReportFromJson(broken).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(LayerReportFromJson(nlohmann::json::array()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// A run must be able to go on from them.
TEST(ReportTest, FiguresThatAreNotFiniteSurviveJson) {
  LayerReport layer = SomeLayer();
  layer.modules[0].weight_error = std::nan("");
  layer.sites[0].abs_max_after = INFINITY;
  layer.norm_tweak->loss_after = std::nan("");
  const std::string text = ToJson(layer).dump();
  const auto back = LayerReportFromJson(nlohmann::json::parse(text));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(std::isnan(back->modules[0].weight_error));
  EXPECT_TRUE(std::isnan(back->sites[0].abs_max_after));
  EXPECT_EQ(ToJson(*back).dump(), text);
}

TEST(ReportTest, SumsAreWeighted) {
  const ErrorSummary all = Summarize({SomeLayer()});
  EXPECT_NEAR(all.bits_per_weight, (4.25 * 32 + 4.5 * 96) / 128, 1e-12);
  EXPECT_NEAR(all.weight_error_before, 0.1, 1e-12);
  EXPECT_NEAR(all.weight_error, std::sqrt((0.36 + 0.16) / 25.0), 1e-12);
  EXPECT_NEAR(*all.output_error, 0.03, 1e-12) << "of the modules that have one";
  EXPECT_FALSE(Summarize({}).output_error.has_value());
}

TEST(ReportTest, TableHasEveryModule) {
  QuantizeReport report;
  report.layers = {SomeLayer()};
  report.evaluation = EvaluationReport{.data = "text",
                                       .context = 512,
                                       .stride = 256,
                                       .num_scored = 100,
                                       .source_perplexity = 10.0,
                                       .perplexity = 10.1,
                                       .quantization = "w4a8 (folded)"};
  const std::string table = Table(report);
  EXPECT_THAT(table, HasSubstr("    3  o_proj      4.25   0.10000  0.20000   0.06000  0.03000      "
                               "17.50 middle  mean^0.35\n"));
  EXPECT_THAT(table, HasSubstr("    3  down_proj   4.50   0.10000  0.10000         -        - "));
  EXPECT_THAT(table, HasSubstr("moment loss 0.50000 -> 0.25000, tweaked"));
  EXPECT_THAT(table, HasSubstr("10.1000, of the source 10.0000 (+1.00 %;"));
}

}  // namespace
}  // namespace nibble::quantize
