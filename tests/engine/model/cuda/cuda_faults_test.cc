// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a device does not have, or no more, is said in words.

#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/device.h"
#include "engine/model/cuda/architectures.h"
#include "engine/model/cuda/cuda_device.h"
#include "engine/model/model_device.h"
#include "tests/engine/model/cuda/cuda_models.h"
#include "tests/engine/model/tiny_checkpoint.h"

namespace nibble::engine {
namespace {

using testing::CudaModelTest;
using ::testing::ElementsAre;
using testing::FixtureModel;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
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

TEST_F(CudaFaultsTest, AnotherTypeThanTheCheckpointsIsSaid) {
  testing::TinyCheckpoint checkpoint;
  checkpoint.config["torch_dtype"] = "float16";
  const std::string dir = checkpoint.Write("cuda_float16");
  const auto chosen = LoadOnDevice(dir, {});
  const auto asked = LoadOnDevice(dir, {.dtype = DType::kBf16});
  ASSERT_TRUE(chosen != nullptr && asked != nullptr);
  EXPECT_THAT(chosen->warnings(), ElementsAre(HasSubstr("float16, which its device computes in")));
  EXPECT_THAT(asked->warnings(), IsEmpty());
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
  EXPECT_GT(kv.available_bytes, 0);
  // Half of the whole, less what is in use; a thousandth for what others do meanwhile.
  const int64_t used = memory->total_bytes - memory->free_bytes;
  EXPECT_NEAR(static_cast<double>(kv.available_bytes),
              static_cast<double>(memory->total_bytes / 2 - used),
              static_cast<double>(memory->total_bytes) / 1000);
  EXPECT_LT(little->kv_memory().available_bytes, 0);  // by how much the weights are too large
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

TEST_F(CudaFaultsTest, SizesThatAStepWouldRefuseAreRefusedAtLoad) {
  const auto device = OpenCudaDevice({});
  ASSERT_TRUE(device.ok()) << device.status();
  const auto good = LoadModelConfig(FixtureModel("mixtral"));
  ASSERT_TRUE(good.ok()) << good.status();
  const auto layout = [&](int64_t num_slots) {
    ExpertLayout many{.num_experts = good->moe->num_experts, .num_slots = num_slots};
    return std::make_shared<const ExpertLayout>(std::move(many));
  };
  const auto refusal = [&](auto change, int64_t num_slots = 8, RankPlace place = {}) {
    ModelConfig config = *good;
    change(&config);
    LoadOptions load{.place = place};
    load.expert_layout = layout(num_slots);
    return std::string((*device)->Adapt(config, load).status().message());
  };
  EXPECT_EQ(refusal([](ModelConfig*) {}), "");
  EXPECT_THAT(refusal([](ModelConfig* c) { c->vocab_size = (1 << 18) + 1; }),
              HasSubstr("vocab_size is 262145: the CUDA engine samples from 262144"));
  EXPECT_THAT(refusal([](ModelConfig* c) { c->moe->intermediate_size = 24; }, 8,
                      {.size = 2, .expert_size = 1}),
              HasSubstr("intermediate size is 24, of which a rank has 12"));
  EXPECT_EQ(refusal([](ModelConfig* c) { c->moe->intermediate_size = 24; }, 8,
                    {.size = 2, .expert_size = 2}),
            "");
  EXPECT_THAT(refusal([](ModelConfig* c) { c->moe->shared_expert_intermediate_size = 20; }),
              HasSubstr("the shared expert's intermediate size is 20"));
  EXPECT_THAT(refusal([](ModelConfig* c) {
                c->intermediate_size = 44;
                c->moe->is_moe_layer[0] = false;
              }),
              HasSubstr("intermediate_size is 44, of which a rank has 44"));
  EXPECT_THAT(refusal([](ModelConfig*) {}, 1025), HasSubstr("a rank has 1025 experts"));
  EXPECT_EQ(refusal([](ModelConfig*) {}, 1026, {.size = 2, .expert_size = 2}), "");
}

TEST(CudaArchitecturesTest, SayWhichDevicesKernelsRunOn) {
  constexpr const char* kDefault = "80-real,90a-real";
  for (const int sm : {80, 86, 89, 90}) EXPECT_TRUE(HasKernelsFor(kDefault, sm)) << sm;
  for (const int sm : {75, 100, 103, 120}) EXPECT_FALSE(HasKernelsFor(kDefault, sm)) << sm;
  EXPECT_FALSE(HasKernelsFor("80-real", 90));
  EXPECT_FALSE(HasKernelsFor("90a-real", 80));
  EXPECT_TRUE(HasKernelsFor("80", 120)) << "PTX";
  EXPECT_TRUE(HasKernelsFor("80-real,90-virtual", 100));
  EXPECT_FALSE(HasKernelsFor("90a", 100)) << "PTX of one device";
  EXPECT_FALSE(HasKernelsFor("86-real", 80));
  EXPECT_TRUE(HasKernelsFor("100f-real", 103));
  EXPECT_FALSE(HasKernelsFor("100f", 120));
  EXPECT_TRUE(HasKernelsFor("native", 75)) << "not known here";
}

#ifdef NIBBLE_SIMT
class CudaHostsTest : public CudaFaultsTest {
 protected:
  ~CudaHostsTest() override { simt::SetDevice({}); }
};

TEST_F(CudaHostsTest, WhyThereIsNoDeviceIsSaid) {
  simt::SetDevice({.driver_version = 12040});
  EXPECT_EQ(ListCudaDevices().why_none,
            "the driver is for CUDA 12.4, this program needs 13.0 (driver 580 or later)");
  simt::SetDevice({.major = 7, .minor = 5});
  EXPECT_THAT(ListCudaDevices().why_none, HasSubstr("simt (sm_75): this build has kernels for"));
  simt::SetDevice({.has_kernel_images = false});
  ASSERT_EQ(ListCudaDevices().usable.size(), 1U);
  EXPECT_THAT(std::string(OpenCudaDevice({}).status().message()),
              HasSubstr("CUDA device 0, simt (sm_90), kernels for"));
}

// Of a rank on the second of three devices, whose calls come from threads that have none.
TEST_F(CudaHostsTest, NothingIsOnAnotherDevice) {
  simt::SetDevice({.count = 3});
  const auto in_thread = [](const std::function<void()>& body) { std::thread(body).join(); };
  std::unique_ptr<Model> model;
  std::unique_ptr<KvCache> cache;
  in_thread([&] { EXPECT_EQ(ListCudaDevices().usable.size(), 3U); });
  EXPECT_FALSE(simt::HasContext(1));
  in_thread([&] {
    model = LoadOnDevice(FixtureModel("mixtral"), {}, {.index = 1, .use_cublaslt = false});
  });
  ASSERT_NE(model, nullptr);
  in_thread([&] {
    EXPECT_TRUE(model
                    ->Reserve({.max_tokens = 8,
                               .max_positions = 64,
                               .max_samples = 2,
                               .max_seqs = 2,
                               .block_size = 16},
                              &pool_)
                    .ok());
  });
  in_thread([&] { EXPECT_GT(model->kv_memory().available_bytes, 0); });
  in_thread([&] { cache = *model->MakeKvCache(4, 16); });
  in_thread([&] { EXPECT_GT(model->expert_load().num_experts, 0); });
  in_thread([&] { model->Abort("a test"); });
  in_thread([&] { model->SetCommunicator(nullptr); });
  in_thread([&] { cache = nullptr; });
  in_thread([&] { model = nullptr; });
  EXPECT_TRUE(simt::HasContext(1));
  EXPECT_FALSE(simt::HasContext(0));
  EXPECT_FALSE(simt::HasContext(2));
}

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
