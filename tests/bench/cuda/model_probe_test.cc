// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <map>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "bench/device_probe.h"
#include "bench/model_batch.h"
#include "bench/model_bench.h"
#include "bench/random_model.h"
#include "engine/model/cuda/cuda_decoder.h"
#include "engine/model/cuda/cuda_device.h"
#include "engine/model/model_device.h"

namespace nibble::bench {
namespace {

class ModelProbeTest : public ::testing::Test {
 protected:
  void SetUp() override { Make("tiny"); }

  void Make(const char* shape) {
    const engine::CudaDevices devices = engine::ListCudaDevices();
    if (devices.usable.empty()) GTEST_SKIP() << "no CUDA device: " << devices.why_none;
    engine::LoadOptions load{.quantization = engine::Quantization::kW4A8};
    auto device = engine::OpenCudaDevice({.use_cublaslt = false});
    ASSERT_TRUE(device.ok()) << device.status();
    load.device = *std::move(device);
    auto model = MakeRandomModel(*RandomModelConfig(shape), load, &pool_);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    auto probe =
        OpenDeviceProbe(0, {.seconds = 0.0, .min_runs = 1, .rotated_bytes = 1, .peak_rounds = 1});
    ASSERT_TRUE(probe.ok()) << probe.status();
    probe_ = *std::move(probe);
    subject_ = {.model = model_.get(), .pool = &pool_, .probe = probe_.get()};
  }

  // Calls of each op of a row.
  static std::map<std::string, int> CallsOf(const nlohmann::ordered_json& row) {
    std::map<std::string, int> calls;
    for (const auto& op : row["ops"]) calls[op["op"]] = op["calls"];
    return calls;
  }

  ThreadPool pool_{2};
  std::unique_ptr<engine::Model> model_;
  std::unique_ptr<DeviceProbe> probe_;
  ModelSubject subject_;
};

TEST_F(ModelProbeTest, DecodeTellsWhereTheStepGoes) {
  const auto result =
      RunDecodeBench({.batches = {1, 3}, .contexts = {5}, .steps = 2, .repetitions = 1}, subject_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE((*result)["peaks"].contains("int8_top_per_s"));
  EXPECT_TRUE(result->contains("device"));
  EXPECT_EQ((*result)["model"]["quantization"], "random, w4a8 (folded), head w8a8");
  ASSERT_EQ((*result)["results"].size(), 2U);
  const auto& row = (*result)["results"][1];
  for (const char* const member : {"device_ms", "gaps_ms", "host_ms", "share_of_roofline"}) {
    EXPECT_TRUE(row.contains(member)) << member;
  }
  // Two layers; two norms each and the last.
  const std::map<std::string, int> wanted = {
      {"embed", 1},     {"norm+quantize", 5},   {"qkv", 2},  {"rope+append", 2},
      {"attention", 2}, {"quantize", 2},        {"o", 2},    {"gate_up", 2},
      {"down", 2},      {"swiglu+quantize", 2}, {"head", 1}, {"sample", 1}};
  EXPECT_EQ(CallsOf(row), wanted);
  for (const auto& op : row["ops"]) {
    const std::string name = op["op"];
    const bool multiplies =
        name == "qkv" || name == "o" || name == "gate_up" || name == "down" || name == "head";
    EXPECT_EQ(op.contains("share_of_read"), multiplies || name == "attention") << name;
    EXPECT_EQ(op.contains("share_of_peak"), multiplies) << name;
  }
}

TEST_F(ModelProbeTest, PrefillKeepsTheRowThatIsSampled) {
  const auto result = RunPrefillBench(
      {.prompts = {9, 20}, .max_num_batched_tokens = 16, .repetitions = 1}, subject_);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto& rows = (*result)["results"];
  EXPECT_EQ(CallsOf(rows[0]).at("keep rows"), 2);
  EXPECT_FALSE(rows[1].contains("ops"));  // of several chunks
}

TEST_F(ModelProbeTest, OperationsAreThoseOfTheRowsComputed) {
  auto batch = ModelBatch::Create(model_.get(), {.max_tokens = 16, .max_chunk = 9}, &pool_);
  ASSERT_TRUE(batch.ok()) << batch.status();
  const auto step =
      probe_->TimeStep(model_.get(), batch->MakePlan(0, 9, true), batch->cache(), &pool_);
  ASSERT_TRUE(step.ok()) << step.status();
  const engine::ModelConfig& config = model_->config();
  for (const DeviceOp& op : step->ops) {
    EXPECT_GT(op.calls, 0) << op.name;
    // All rows in the first layer, in the last the one that is sampled.
    if (op.name == "gate_up") {
      const auto products = static_cast<double>(2 * config.intermediate_size * config.hidden_size);
      EXPECT_EQ(op.ops, 2.0 * (9 + 1) * products);
      EXPECT_TRUE(op.int8);
    }
  }
}

class ExpertProbeTest : public ModelProbeTest {
 protected:
  void SetUp() override { Make("tiny-mixtral"); }
};

// A token goes to 2 of 4 experts in both layers: one token reads 4 of the 8 altogether.
TEST_F(ExpertProbeTest, WorkIsThatOfTheExpertsChosen) {
  const engine::ModelConfig& config = model_->config();
  const auto expert = static_cast<double>(3 * config.moe->intermediate_size * config.hidden_size);
  for (const int64_t num_tokens : {1, 3}) {
    auto batch =
        ModelBatch::Create(model_.get(), {.num_seqs = num_tokens, .max_tokens = 8}, &pool_);
    ASSERT_TRUE(batch.ok()) << batch.status();
    const auto step =
        probe_->TimeStep(model_.get(), batch->MakePlan(4, 1, true), batch->cache(), &pool_);
    ASSERT_TRUE(step.ok()) << step.status();
    const auto experts = std::find_if(step->ops.begin(), step->ops.end(),
                                      [](const DeviceOp& op) { return op.name == "experts"; });
    ASSERT_NE(experts, step->ops.end());
    EXPECT_EQ(experts->calls, 2);
    EXPECT_EQ(experts->ops, 2.0 * static_cast<double>(4 * num_tokens) * expert);
    EXPECT_TRUE(experts->int8);
    // 4 bits a weight and some scales.
    EXPECT_GT(experts->bytes, 4 * 0.5 * expert);
    EXPECT_LT(experts->bytes, (num_tokens == 1 ? 4 : 8) * 0.75 * expert);
  }
}

TEST_F(ExpertProbeTest, DecodeTellsWhereTheStepGoes) {
  const auto result =
      RunDecodeBench({.batches = {2}, .contexts = {5}, .steps = 1, .repetitions = 1}, subject_);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto& row = (*result)["results"][0];
  EXPECT_TRUE(row.contains("share_of_roofline"));
  EXPECT_EQ(CallsOf(row).at("experts"), 2);
}

// Tokens of steps around it are those of a model that was never timed.
TEST_F(ModelProbeTest, TimingChangesNothing) {
  const auto tokens = [&](bool times) {
    std::vector<int32_t> chosen;
    auto batch = ModelBatch::Create(model_.get(), {.num_seqs = 2, .max_tokens = 8}, &pool_);
    if (!batch.ok()) return chosen;
    for (int64_t position = 0; position < 5; ++position) {
      const engine::StepPlan plan = batch->MakePlan(position, 1, true);
      if (times) {
        EXPECT_TRUE(probe_->TimeStep(model_.get(), plan, batch->cache(), &pool_).ok());
      }
      const auto output = model_->ForwardAndSample(plan, batch->cache(), {}, &pool_);
      EXPECT_TRUE(output.ok()) << output.status();
      if (!output.ok()) return chosen;
      for (const engine::SampledToken& token : output->tokens) chosen.push_back(token.token_id);
    }
    return chosen;
  };
  const std::vector<int32_t> plain = tokens(false);
  ASSERT_EQ(plain.size(), 10U);
  EXPECT_EQ(tokens(true), plain);
}

TEST_F(ModelProbeTest, AnEmptyStepIsRefused) {
  auto batch = ModelBatch::Create(model_.get(), {.max_tokens = 8}, &pool_);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(probe_->TimeStep(model_.get(), {}, batch->cache(), &pool_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ModelProbeTest, AModelOfTheCpusIsRefused) {
  const Isa isa = HostCpuFeatures().Best();
  const auto cpu = MakeRandomModel(*RandomModelConfig("tiny"), {.isa = isa}, &pool_);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  EXPECT_EQ(probe_->TimeStep(cpu->get(), {}, nullptr, &pool_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble::bench
