// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/activation_bench.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/engine/model/rank_models.h"

namespace nibble::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kModel = NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama3";  // three layers

struct Subject {
  explicit Subject(int size) : models(kModel, {.isa = HostCpuFeatures().Best()}, size), ids(40) {
    std::iota(ids.begin(), ids.end(), 3);
    for (int rank = 0; rank < size; ++rank) {
      ranks.push_back({models.model(rank), models.communicator(rank), models.pool(rank)});
    }
  }
  absl::StatusOr<nlohmann::ordered_json> Run(const ActivationBenchOptions& options) const {
    return RunActivationBench(options,
                              {.ranks = ranks, .ids = ids, .isa = HostCpuFeatures().Best()});
  }

  testing::RankModels models;
  std::vector<int32_t> ids;
  std::vector<engine::PerplexityRank> ranks;
};

TEST(ActivationBenchTest, EverySumAndEveryCodec) {
  Subject subject(4);
  const auto report =
      subject.Run({.tokens = 40, .context = 16, .bits = {8, 4}, .group_sizes = {32, 64}});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ((*report)["bench"], "activations");
  EXPECT_EQ((*report)["ranks"], 4);
  EXPECT_EQ((*report)["row_size"], 64);

  const nlohmann::ordered_json& sums = (*report)["all_reduces"];
  std::vector<std::string> names;
  for (const auto& sum : sums) {
    names.push_back(sum["layer"].dump() + sum["after"].get<std::string>());
    // Every token once; the last layer has only rows that predict: not a window's last.
    EXPECT_EQ(sum["rows"], sum["layer"] != 2 ? 40 : 37);
    EXPECT_EQ(sum["largest_message_bytes"], (sum["layer"] != 2 ? 16 : 15) * 64 * 2);
    EXPECT_GT(sum["part_rms"], 0.0);
    EXPECT_GT(sum["sum_rms"], sum["part_rms"].get<double>() * 0.5);
    EXPECT_GT(sum["sum_max_over_rms"], 1.0);
    EXPECT_GT(sum["part_kurtosis"], 1.0);
  }
  EXPECT_THAT(names, ElementsAre("0attention", "0ffn", "1attention", "1ffn", "2attention", "2ffn"));

  std::map<std::string, nlohmann::ordered_json> rows;
  for (const auto& row : (*report)["results"]) rows[row["codec"].get<std::string>()] = row;
  EXPECT_EQ(rows.size(), 16U);
  for (const char* codec : {"int4 g32", "int4 g64 spikes", "int8 g64 hadamard"}) {
    EXPECT_TRUE(rows.contains(codec)) << codec;
  }
  for (const auto& [codec, row] : rows) {
    ASSERT_EQ(row["db_of_all_reduces"].size(), 6U);
    double least = 1e9;
    double sum = 0.0;
    for (const double db : row["db_of_all_reduces"]) {
      least = std::min(least, db);
      sum += db;
    }
    EXPECT_EQ(row["worst_db"], least) << codec;
    EXPECT_NEAR(row["mean_db"], sum / 6, 0.01) << codec;
  }
  // Four bits are 16 times the step: 24 dB.
  EXPECT_NEAR(rows["int8 g32"]["mean_db"].get<double>() - rows["int4 g32"]["mean_db"].get<double>(),
              24.6, 2.0);
  EXPECT_GT(rows["int4 g32"]["mean_db"], rows["int4 g64"]["mean_db"]);
}

TEST(ActivationBenchTest, TheModelComputesAsWithoutIt) {
  Subject subject(2);
  const auto report = subject.Run({.tokens = 40, .context = 20, .bits = {2}, .group_sizes = {64}});
  ASSERT_TRUE(report.ok()) << report.status();
  // The ranks have their own communicators again.
  const auto plain =
      engine::ComputePerplexity(subject.ranks, subject.ids, {.context = 20, .stride = 20});
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_NEAR((*report)["perplexity"].get<double>() / plain->perplexity, 1.0, 1e-4);
}

TEST(ActivationBenchTest, WhatMakesNoSenseIsRefused) {
  std::vector<std::string> violations;
  ActivationBenchOptions().Validate(&violations);
  EXPECT_TRUE(violations.empty());
  ActivationBenchOptions({.tokens = 0, .context = 1, .bits = {4, 16}, .group_sizes = {48}})
      .Validate(&violations);
  EXPECT_THAT(violations, ElementsAre(HasSubstr("--tokens"), HasSubstr("--context"),
                                      HasSubstr("--bits is 16"), HasSubstr("--group-size")));
  const Subject alone(1);
  EXPECT_THAT(std::string(alone.Run({}).status().message()), HasSubstr("one rank"));
  Subject wild(2);
  wild.ids[7] = 1 << 20;
  EXPECT_EQ(wild.Run({}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble::bench
