// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/parallel_setup.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/mapped_file.h"

namespace nibble::cli {
namespace {

// A large model's, with copies: as JSON more than Linux lets an argument have (128 KiB).
engine::ExpertLayout LargeLayout() {
  engine::ExpertLayout layout{.num_experts = 512, .num_slots = 640, .expert_of_slot = {}};
  for (int layer = 0; layer < 48; ++layer) {
    for (int slot = 0; slot < 640; ++slot) layout.expert_of_slot.push_back(slot % 512);
  }
  return layout;
}

TEST(ParallelSetupTest, RanksGetLayoutsOfLargeModels) {
  const engine::ExpertLayout layout = LargeLayout();
  const std::string text = engine::Serialize(layout);
  ASSERT_GT(text.size(), size_t{128} << 10);
  server::ServeConfig config;
  config.parallel.tensor_parallel_size = 2;
  HostSetup host;
  host.placement.ranks.resize(2);
  const auto file = MemoryFile::Create(text);
  ASSERT_TRUE(file.ok()) << file.status();
  host.layout_file = *file;
  const std::vector<std::string> command = LocalRanksFor(config, host).command(1);
  for (const std::string& argument : command) EXPECT_LT(argument.size(), 4096U) << argument;
  const auto option = std::find(command.begin(), command.end(), "--expert-layout");
  ASSERT_LT(option + 1, command.end());
  const auto read = ReadFile(option[1], size_t{1} << 20);
  ASSERT_TRUE(read.ok()) << read.status();
  const auto parsed = engine::ParseExpertLayout(*read, option[1]);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->expert_of_slot, layout.expert_of_slot);
}

TEST(ParallelSetupTest, RanksAreBatchInvariantAsTheServerIs) {
  server::ServeConfig config;
  config.parallel.tensor_parallel_size = 2;
  HostSetup host;
  host.placement.ranks.resize(2);
  const auto count = [&] {
    const std::vector<std::string> command = LocalRanksFor(config, host).command(1);
    return std::count(command.begin(), command.end(), "--batch-invariant");
  };
  const std::string before = IdentityOf(config, host).options_fingerprint;
  EXPECT_EQ(count(), 0);
  config.model.batch_invariant = true;
  EXPECT_EQ(count(), 1);
  EXPECT_NE(IdentityOf(config, host).options_fingerprint, before);
}

TEST(ParallelSetupTest, StagesSpanNodesOrNot) {
  const auto spans = [](int tensor_parallel_size, int pipeline_parallel_size, int nnodes) {
    return SomeStageSpansNodes({.tensor_parallel_size = tensor_parallel_size,
                                .pipeline_parallel_size = pipeline_parallel_size,
                                .nnodes = nnodes});
  };
  EXPECT_FALSE(spans(4, 1, 1));
  EXPECT_TRUE(spans(4, 1, 2));
  EXPECT_FALSE(spans(4, 2, 2)) << "a stage each";
  EXPECT_FALSE(spans(2, 4, 2)) << "two stages each";
  EXPECT_FALSE(spans(1, 2, 2));
  EXPECT_TRUE(spans(2, 3, 2)) << "the second stage";
  EXPECT_TRUE(spans(4, 2, 4));
}

}  // namespace
}  // namespace nibble::cli
