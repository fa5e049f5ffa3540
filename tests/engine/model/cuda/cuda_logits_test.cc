// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Logits of models on a device against those of the CPU.

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/model/cuda/cuda_models.h"
#include "tests/engine/model/tiny_checkpoint.h"

namespace nibble::engine {
namespace {

using testing::CudaModelTest;
using testing::FixtureModel;
using testing::ModelRunner;
using testing::RelativeDifference;
using testing::SameBits;
using testing::SomeIds;

// Float32 sums of up to 256 terms in another order: an error of some 256 * 2^-24 of the terms' sum
// at worst for each of a dozen products in a row, and norms keep it relative.
constexpr double kFloat32Tolerance = 256 * 0x1p-24 * 12;
// An activation on the border of two codes may get the other one: 1/127 of a row's largest in one
// term of a hundred.
constexpr double kCodeTolerance = 0.004;
// bf16 keeps 8 bits: each of some dozen roundings changes a value by up to 2^-9 of it.
constexpr double kBf16Tolerance = 12 * 0x1p-9;

class CudaFixtureTest : public CudaModelTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(CudaFixtureTest, Float32LogitsAreTheCpus) {
  const LoadOptions load{.dtype = DType::kF32};
  const auto cpu = LoadOnCpu(FixtureModel(GetParam()), load);
  const auto device = LoadOnDevice(FixtureModel(GetParam()), load);
  ASSERT_TRUE(cpu != nullptr && device != nullptr);
  const std::vector<int32_t> ids = SomeIds(15, cpu->config().vocab_size);  // beyond the windows
  ModelRunner on_cpu(cpu.get(), 4, &pool_, 8);
  ModelRunner on_device(device.get(), 4, &pool_, 8);
  const std::vector<float> wanted = on_cpu.Prefill(ids, 15);
  EXPECT_LT(RelativeDifference(on_device.Prefill(ids, 15), wanted), kFloat32Tolerance);
  EXPECT_EQ(device->weight_bytes() > 0, true);
  EXPECT_EQ(device->quantization_name(), cpu->quantization_name());
}

INSTANTIATE_TEST_SUITE_P(All, CudaFixtureTest,
                         ::testing::Values("llama3", "llama_linear_bias", "mistral", "qwen2",
                                           "qwen3", "mixtral", "qwen3_moe", "qwen3_moe_norm"),
                         [](const auto& model) { return std::string(model.param); });

// Every form in which checkpoints store quantized weights: groups of 32, zero points, act-order,
// forms that are mixed in one layer.
class CudaQuantizedTest : public CudaModelTest,
                          public ::testing::WithParamInterface<const char*> {};

TEST_P(CudaQuantizedTest, StoredCodesAreMultipliedAsOnTheCpu) {
  const std::string dir = testing::DataPath(std::string("tests/fixtures/quantized/") + GetParam());
  const LoadOptions load{.dtype = DType::kF32};
  const auto cpu = LoadOnCpu(dir, load);
  const auto device = LoadOnDevice(dir, load);
  ASSERT_TRUE(cpu != nullptr && device != nullptr);
  EXPECT_EQ(device->quantization_name(), cpu->quantization_name());
  const std::vector<int32_t> ids = SomeIds(9, cpu->config().vocab_size);
  ModelRunner on_cpu(cpu.get(), 2, &pool_);
  ModelRunner on_device(device.get(), 2, &pool_);
  EXPECT_LT(RelativeDifference(on_device.Prefill(ids, 9), on_cpu.Prefill(ids, 9)), kCodeTolerance);
}

INSTANTIATE_TEST_SUITE_P(All, CudaQuantizedTest,
                         ::testing::Values("auto_round", "awq", "ct_group_index", "ct_w4a16_asym",
                                           "ct_w4a8_int", "ct_w8a8", "gptq", "gptq_act_order",
                                           "gptq_v2", "moe_awq", "moe_ct_w4a8"),
                         [](const auto& model) { return std::string(model.param); });

class CudaLogitsTest : public CudaModelTest {};

// A Qwen2-MoE of one layer with 4 experts and a shared one.
std::string WriteSharedExpert() {
  using testing::TinyCheckpoint;
  TinyCheckpoint checkpoint;
  checkpoint.UseExperts(4, 2);
  checkpoint.config.erase("num_local_experts");
  checkpoint.config.update({{"architectures", {"Qwen2MoeForCausalLM"}},
                            {"model_type", "qwen2_moe"},
                            {"num_experts", 4},
                            {"moe_intermediate_size", TinyCheckpoint::kIntermediate},
                            {"shared_expert_intermediate_size", 128},
                            {"norm_topk_prob", false},
                            {"decoder_sparse_step", 1}});
  std::map<std::string, testing::TinyTensor> renamed;
  for (auto& [name, tensor] : checkpoint.tensors) {
    std::string own = name;
    for (const auto& [from, to] : {std::pair("block_sparse_moe.", "mlp."),
                                   {".w1.", ".gate_proj."},
                                   {".w2.", ".down_proj."},
                                   {".w3.", ".up_proj."}}) {
      if (const size_t at = own.find(from); at != std::string::npos) {
        own.replace(at, std::string(from).size(), to);
      }
    }
    renamed[own] = std::move(tensor);
  }
  checkpoint.tensors = std::move(renamed);
  testing::Random random(13);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    checkpoint.tensors["model.layers.0." + name] = {.shape = std::move(shape),
                                                    .values = random.Normals(count, 0.1F)};
  };
  add("self_attn.q_proj.bias", {TinyCheckpoint::kQSize});
  add("self_attn.k_proj.bias", {TinyCheckpoint::kKvSize});
  add("self_attn.v_proj.bias", {TinyCheckpoint::kKvSize});
  add("mlp.shared_expert.gate_proj.weight", {128, TinyCheckpoint::kHidden});
  add("mlp.shared_expert.up_proj.weight", {128, TinyCheckpoint::kHidden});
  add("mlp.shared_expert.down_proj.weight", {TinyCheckpoint::kHidden, 128});
  add("mlp.shared_expert_gate.weight", {1, TinyCheckpoint::kHidden});
  return checkpoint.Write("cuda_shared_expert");
}

TEST_F(CudaLogitsTest, SharedExperts) {
  const std::string dir = WriteSharedExpert();
  for (const Quantization quantization : {Quantization::kNone, Quantization::kW4A8}) {
    const LoadOptions load{.dtype = DType::kF32, .quantization = quantization};
    const auto cpu = LoadOnCpu(dir, load);
    const auto device = LoadOnDevice(dir, load);
    ASSERT_TRUE(cpu != nullptr && device != nullptr);
    const std::vector<int32_t> ids = SomeIds(7, cpu->config().vocab_size);
    ModelRunner on_cpu(cpu.get(), 2, &pool_);
    ModelRunner on_device(device.get(), 2, &pool_);
    EXPECT_LT(RelativeDifference(on_device.Prefill(ids, 7), on_cpu.Prefill(ids, 7)),
              quantization == Quantization::kNone ? kFloat32Tolerance : kCodeTolerance);
  }
}

TEST_F(CudaLogitsTest, Bf16LogitsAreCloseToFloatArithmetic) {
  for (const auto& [name, use_cublaslt] :
       {std::pair("llama3", false), {"llama3", true}, {"mixtral", false}}) {
    const auto cpu = LoadOnCpu(FixtureModel(name), {});
    const auto device =
        LoadOnDevice(FixtureModel(name), {}, CudaOptions{.use_cublaslt = use_cublaslt});
    ASSERT_TRUE(cpu != nullptr && device != nullptr);
    EXPECT_EQ(device->kv_dtype(), DType::kBf16);
    const std::vector<int32_t> ids = SomeIds(6, cpu->config().vocab_size);
    ModelRunner on_cpu(cpu.get(), 2, &pool_);
    ModelRunner on_device(device.get(), 2, &pool_);
    EXPECT_LT(RelativeDifference(on_device.Prefill(ids, 6), on_cpu.Prefill(ids, 6)), kBf16Tolerance)
        << name;
  }
}

TEST_F(CudaLogitsTest, QuantizedLogitsAreTheCpusButForRoundingOfActivations) {
  const std::string dir = testing::TinyCheckpoint(2).Write("cuda_quantized");
  for (const Quantization quantization : {Quantization::kW4A8, Quantization::kW8A8}) {
    const LoadOptions load{.dtype = DType::kF32, .quantization = quantization};
    const auto cpu = LoadOnCpu(dir, load);
    const auto device = LoadOnDevice(dir, load);
    ASSERT_TRUE(cpu != nullptr && device != nullptr);
    EXPECT_EQ(device->quantization_name(), cpu->quantization_name());
    const std::vector<int32_t> ids = SomeIds(9, cpu->config().vocab_size);
    ModelRunner on_cpu(cpu.get(), 2, &pool_);
    ModelRunner on_device(device.get(), 2, &pool_);
    EXPECT_LT(RelativeDifference(on_device.Prefill(ids, 9), on_cpu.Prefill(ids, 9)),
              kCodeTolerance);
  }
}

TEST_F(CudaLogitsTest, QuantizedExpertsAndInt8Cache) {
  testing::TinyCheckpoint checkpoint;
  checkpoint.UseExperts(4, 2);
  const std::string dir = checkpoint.Write("cuda_quantized_experts");
  const LoadOptions load{
      .dtype = DType::kF32, .kv_cache_dtype = DType::kI8, .quantization = Quantization::kW4A8};
  const auto cpu = LoadOnCpu(dir, load);
  const auto device = LoadOnDevice(dir, load);
  ASSERT_TRUE(cpu != nullptr && device != nullptr);
  EXPECT_EQ(device->kv_dtype(), DType::kI8);
  const std::vector<int32_t> ids = SomeIds(9, cpu->config().vocab_size);
  ModelRunner on_cpu(cpu.get(), 2, &pool_);
  ModelRunner on_device(device.get(), 2, &pool_);
  EXPECT_LT(RelativeDifference(on_device.Prefill(ids, 9), on_cpu.Prefill(ids, 9)), kCodeTolerance);
  // Tokens are counted as they are on the CPU: 9, each with two experts.
  EXPECT_EQ(device->expert_load().tokens, cpu->expert_load().tokens);
}

TEST_F(CudaLogitsTest, ChunksAndBatchesDoNotChangeBits) {
  const auto model = LoadOnDevice(FixtureModel("qwen3"), {});
  ASSERT_NE(model, nullptr);
  const std::vector<int32_t> ids = SomeIds(11, model->config().vocab_size);
  const std::vector<int32_t> others = SomeIds(7, model->config().vocab_size, 6);
  ModelRunner runner(model.get(), 4, &pool_);
  const std::vector<float> whole = runner.Prefill(ids, 11);
  EXPECT_TRUE(SameBits(runner.Prefill(ids, 4), whole));
  EXPECT_TRUE(SameBits(runner.Prefill(ids, 1), whole));  // decode steps, as graphs from the second

  testing::TestSequence one{.ids = ids};
  testing::TestSequence two{.ids = others};
  const std::vector<float> both =
      runner.Step({{.sequence = &two, .num_tokens = 7}, {.sequence = &one, .num_tokens = 11}});
  const auto vocab = static_cast<size_t>(model->config().vocab_size);
  EXPECT_TRUE(SameBits({both.end() - static_cast<ptrdiff_t>(vocab), both.end()},
                       {whole.end() - static_cast<ptrdiff_t>(vocab), whole.end()}));
}

}  // namespace
}  // namespace nibble::engine
