// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a device does not have, or no more, is said in words.

#include <cuda_runtime.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/device.h"
#include "engine/model/cuda/cuda_device.h"
#include "tests/engine/model/cuda/cuda_models.h"
#include "tests/engine/model/tiny_checkpoint.h"

namespace nibble::engine {
namespace {

using testing::CudaModelTest;
using testing::FixtureModel;
using ::testing::HasSubstr;
using testing::ModelRunner;
using testing::SomeIds;

class CudaFaultsTest : public CudaModelTest {
 protected:
  std::string Refusal(const char* fixture, const LoadOptions& load) {
    const auto model = Model::Load(FixtureModel(fixture), OnDevice(load), &pool_);
    return model.ok() ? "" : std::string(model.status().message());
  }
};

TEST_F(CudaFaultsTest, WhatTheDeviceDoesNotHaveIsRefusedByName) {
  EXPECT_THAT(Refusal("llama", {}), HasSubstr("head_dim is 14"));
  EXPECT_THAT(Refusal("llama3", {.quantization = Quantization::kW4A16}),
              HasSubstr("--quantization w4a16"));
  EXPECT_THAT(Refusal("llama3", {.dtype = DType::kF16}), HasSubstr("--dtype float16"));
  EXPECT_THAT(Refusal("llama3", {.kv_cache_dtype = DType::kF16}),
              HasSubstr("--kv-cache-dtype float16"));
  EXPECT_THAT(Refusal("mixtral", {.check_routing = true}), HasSubstr("--check-routing"));
  testing::TinyCheckpoint checkpoint;
  checkpoint.UseExperts(6, 2);
  const auto model =
      Model::Load(checkpoint.Write("cuda_six_experts"), OnDevice(LoadOptions{}), &pool_);
  EXPECT_THAT(std::string(model.status().message()), HasSubstr("6 experts"));
  EXPECT_THAT(
      std::string(Model::Load(testing::DataPath("tests/fixtures/quantized/moe_gptq_act_order"),
                              OnDevice(LoadOptions{}), &pool_)
                      .status()
                      .message()),
      HasSubstr("layer 0: the experts' gate and up reorder their input channels"));
  EXPECT_THAT(std::string(Model::Load(testing::DataPath("tests/fixtures/quantized/ct_mixed"),
                                      OnDevice(LoadOptions{}), &pool_)
                              .status()
                              .message()),
              HasSubstr("mlp.down_proj: gemm: group_size is 48"));
}

TEST_F(CudaFaultsTest, DevicesThatAreNotThereAreNamed) {
  const auto device = OpenCudaDevice({.index = 99});
  EXPECT_EQ(device.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(device.status().message()), HasSubstr("CUDA device 99"));
}

TEST_F(CudaFaultsTest, MemoryIsShared) {
  const auto half = LoadOnDevice(FixtureModel("llama3"), {}, {.memory_utilization = 0.5});
  const auto little = LoadOnDevice(FixtureModel("llama3"), {}, {.memory_utilization = 1e-9});
  ASSERT_TRUE(half != nullptr && little != nullptr);
  const auto memory = gpu::GetDeviceMemory();
  ASSERT_TRUE(memory.ok()) << memory.status();
  const KvMemory kv = half->kv_memory();
  EXPECT_TRUE(kv.is_own);
  EXPECT_LE(kv.available_bytes, memory->total_bytes / 2);
  EXPECT_EQ(little->kv_memory().available_bytes, 0);
}

TEST_F(CudaFaultsTest, TooMuchMemoryIsRefusedByBytes) {
  const auto model = LoadOnDevice(FixtureModel("llama3"), {});
  ASSERT_NE(model, nullptr);
  const absl::Status status =
      model->Reserve({.max_tokens = int64_t{1} << 30, .max_positions = 64}, &pool_);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a step of 1073741824 tokens needs"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes of device memory"));
  const auto cache = model->MakeKvCache(int64_t{1} << 26, 16);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("the KV cache (67108864 blocks"));
  // A smaller step goes on.
  ModelRunner runner(model.get(), 2, &pool_);
  EXPECT_FALSE(runner.Prefill(SomeIds(2, model->config().vocab_size), 2).empty());
}

TEST_F(CudaFaultsTest, PlansAndCachesAreChecked) {
  const auto model = LoadOnDevice(FixtureModel("llama3"), {});
  ASSERT_NE(model, nullptr);
  ModelRunner runner(model.get(), 2, &pool_);
  testing::TestSequence sequence{.ids = SomeIds(3, model->config().vocab_size)};
  StepPlan plan = runner.MakePlan({{.sequence = &sequence, .num_tokens = 3}});
  std::vector<float> logits(static_cast<size_t>(model->config().vocab_size));
  auto host_cache = HostKvCache::Create(model->rank_config(), 2, 16, DType::kBf16);
  ASSERT_TRUE(host_cache.ok()) << host_cache.status();
  EXPECT_THAT(std::string(model->Forward(plan, &*host_cache, logits.data(), &pool_).message()),
              HasSubstr("not in the device's memory"));
  plan.slot_mapping[1] = 31337;
  EXPECT_EQ(model->Forward(plan, runner.cache(), logits.data(), &pool_).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(model->Health().ok());
}

#ifdef NIBBLE_SIMT
// On a real device nothing could run in this process afterwards.
TEST_F(CudaFaultsTest, ALostDeviceIsToldByEveryStep) {
  const auto model = LoadOnDevice(FixtureModel("llama3"), {});
  ASSERT_NE(model, nullptr);
  ModelRunner runner(model.get(), 2, &pool_);
  testing::TestSequence sequence{.ids = SomeIds(3, model->config().vocab_size)};
  const StepPlan plan = runner.MakePlan({{.sequence = &sequence, .num_tokens = 3}});
  std::vector<float> logits(static_cast<size_t>(model->config().vocab_size));
  ASSERT_TRUE(model->Forward(plan, runner.cache(), logits.data(), &pool_).ok());
  EXPECT_TRUE(model->Health().ok());
  simt::FailNext(cudaErrorIllegalAddress);
  const absl::Status first = model->Forward(plan, runner.cache(), logits.data(), &pool_);
  EXPECT_EQ(first.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(first.message()), HasSubstr("is lost to this process"));
  simt::ClearError();
  EXPECT_EQ(model->Forward(plan, runner.cache(), logits.data(), &pool_), first);
  EXPECT_EQ(model->Health(), first);
}
#endif

}  // namespace
}  // namespace nibble::engine
