// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/expert_recorder.h"

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/mapped_file.h"
#include "tests/testing/temp_dir.h"

namespace nibble::cli {
namespace {

namespace fs = std::filesystem;

engine::ExpertLoad Load(uint64_t tokens) {
  return {.num_layers = 1, .num_experts = 2, .tokens = {tokens, 0}};
}

class ExpertRecorderTest : public ::testing::Test {
 protected:
  uint64_t Recorded() const {
    const auto text = ReadFile(path_, 1 << 20);
    if (!text.ok()) return 0;
    const auto load = engine::ParseExpertLoad(*text, path_);
    EXPECT_TRUE(load.ok()) << load.status();  // never half a file
    return load.ok() ? load->at(0, 0) : 0;
  }

  testing::TempDir folder_;
  const std::string path_ = folder_.path() + "/load.json";
  std::atomic<uint64_t> tokens_{0};
};

TEST_F(ExpertRecorderTest, WritesNowAndThenAndAtTheEnd) {
  auto recorder = ExpertRecorder::Start(
      path_, [&] { return Load(tokens_.load()); }, std::chrono::milliseconds(1));
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  tokens_ = 5;
  while (Recorded() != 5) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  (*recorder)->Stop();
  auto last = ExpertRecorder::Start(
      path_, [&] { return Load(tokens_.load()); }, std::chrono::hours(1));
  tokens_ = 7;
  EXPECT_EQ(Recorded(), 5U);
  (*last)->Stop();
  EXPECT_EQ(Recorded(), 7U);
  // Nothing is left beside it.
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1);
}

TEST_F(ExpertRecorderTest, AStartWithoutTokensLosesNoEarlierRecord) {
  std::ofstream(path_) << engine::Serialize(Load(9));
  {
    const auto recorder = ExpertRecorder::Start(path_, [] { return Load(0); });
    ASSERT_TRUE(recorder.ok()) << recorder.status();
  }
  EXPECT_EQ(Recorded(), 9U);
}

TEST_F(ExpertRecorderTest, WhereNothingCanBeWrittenIsRefusedAtOnce) {
  const auto read = [] { return Load(1); };
  const auto missing = ExpertRecorder::Start(folder_.path() + "/none/load.json", read);
  EXPECT_THAT(std::string(missing.status().message()),
              ::testing::HasSubstr("--record-expert-load: " + folder_.path() + "/none/load.json"));
  EXPECT_FALSE(ExpertRecorder::Start(folder_.path(), read).ok());
}

}  // namespace
}  // namespace nibble::cli
