// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/run_description.h"

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/quantize/tiny_model.h"
#include "tests/testing/temp_dir.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;
using nibble::testing::Slurp;
using nibble::testing::TempDir;

class RunDescriptionTest : public ::testing::Test {
 protected:
  RunDescriptionTest() {
    testing::MakeTinyModel("qwen2", model_);
    dir_.Write("text.txt", "a fox");
    options_.recipe = *ParseRecipe("gptq");
    options_.calibration.data = dir_.File("text.txt");
  }

  std::string Describe(const QuantizeOptions& options) const {
    const auto source = engine::Checkpoint::Open(model_);
    EXPECT_TRUE(source.ok()) << source.status();
    const auto run = DescribeRun(*source, options);
    EXPECT_TRUE(run.ok()) << run.status();
    return run->dump();
  }

  const TempDir dir_;
  const std::string model_ = dir_.File("model");
  QuantizeOptions options_;
};

TEST_F(RunDescriptionTest, EveryOptionThatChangesTheBytesChangesIt) {
  const std::string before = Describe(options_);
  EXPECT_EQ(Describe(options_), before);
  dir_.Write("other.txt", "a fox");
  const std::vector<std::function<void(QuantizeOptions*)>> changes = {
      [](QuantizeOptions* o) { o->scheme = Scheme::kW4A16; },
      [](QuantizeOptions* o) { o->group_size = 64; },
      [](QuantizeOptions* o) { o->group_size = kChannelGroup; },
      [](QuantizeOptions* o) { o->recipe = *ParseRecipe("clip,gptq"); },
      [](QuantizeOptions* o) { o->recipe = *ParseRecipe("awq,gptq"); },
      [](QuantizeOptions* o) { o->recipe = *ParseRecipe("awq,rtn"); },
      [](QuantizeOptions* o) { o->norm_tweak_rate = 1e-3; },
      [](QuantizeOptions* o) { o->calibration.data = kSelfGenerated; },
      [&](QuantizeOptions* o) { o->calibration.data = dir_.File("other.txt"); },
      [](QuantizeOptions* o) { o->calibration.num_samples = 64; },
      [](QuantizeOptions* o) { o->calibration.length = 256; },
      [](QuantizeOptions* o) { o->isa = Isa::kAvx2; }};
  for (size_t i = 0; i < changes.size(); ++i) {
    QuantizeOptions options = options_;
    changes[i](&options);
    EXPECT_NE(Describe(options), before) << "change " << i;
  }
  QuantizeOptions written = options_;
  written.calibration.data = kSelfGenerated;
  const std::string seed_0 = Describe(written);
  written.calibration.seed = 1;
  EXPECT_NE(Describe(written), seed_0);
  // What the layers do not depend on may change when a run goes on.
  QuantizeOptions options = options_;
  options.eval_data = dir_.File("other.txt");
  options.overwrite = true;
  options.max_shard_bytes = 1000;
  EXPECT_EQ(Describe(options), before);
}

TEST_F(RunDescriptionTest, EveryFileThatChangesTheBytesChangesIt) {
  std::string before = Describe(options_);
  const auto expect_change = [&](const char* what) {
    const std::string after = Describe(options_);
    EXPECT_NE(after, before) << what;
    before = after;
  };
  dir_.Write("text.txt", "a dog");
  expect_change("calibration text");
  dir_.Write("model/tokenizer.json", Slurp(model_ + "/tokenizer.json") + " ");
  expect_change("tokenizer.json");
  dir_.Write("model/tokenizer_config.json", "{}");
  expect_change("tokenizer_config.json");
  dir_.Write("model/config.json", Slurp(model_ + "/config.json") + " ");
  expect_change("config.json");
  const std::string weights = model_ + "/model.safetensors";
  fs::last_write_time(weights, fs::last_write_time(weights) + std::chrono::seconds(1));
  expect_change("weights");
  fs::copy(model_, dir_.File("copy"));
  const auto copy = engine::Checkpoint::Open(dir_.File("copy"));
  ASSERT_TRUE(copy.ok());
  EXPECT_NE(DescribeRun(*copy, options_)->dump(), before) << "another folder";
}

TEST_F(RunDescriptionTest, WithoutCalibrationTheTokenizerDoesNotMatter) {
  options_.recipe = {};
  options_.calibration.data.clear();
  const std::string before = Describe(options_);
  dir_.Write("model/tokenizer.json", "{}");
  EXPECT_EQ(Describe(options_), before);
}

}  // namespace
}  // namespace nibble::quantize
