// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Choosing, which needs no device: for the shapes of real models, and total over all sizes.

#include "kernels/gemm/cuda/gemm_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::kernels::cuda {
namespace {

gpu::DeviceCaps Caps(int sm) {
  return {.sm = sm,
          .num_sms = sm == 80   ? 108
                     : sm == 89 ? 142
                                : 132,
          .max_shared_bytes = sm == 80   ? 163 * 1024
                              : sm == 89 ? 99 * 1024
                                         : 227 * 1024};
}

GemmDesc W4A8(int64_t n, int64_t k, ScaleForm form = ScaleForm::kFolded) {
  return {.format = WeightFormat::kW4A8, .scale_form = form, .n = n, .k = k, .group_size = 128};
}
GemmDesc Bf16(int64_t n, int64_t k) {
  return {.format = WeightFormat::kDense, .storage = DType::kBf16, .n = n, .k = k};
}

struct Shape {
  const char* name;
  int64_t n, k;
  int parts;
};
const Shape kShapes[] = {
    {"Llama-3-8B qkv", 6144, 4096, 8},        {"Llama-3-8B o", 4096, 4096, 8},
    {"Llama-3-8B gate_up", 28672, 4096, 2},   {"Llama-3-8B down", 4096, 14336, 8},
    {"Llama-3-8B head", 128256, 4096, 1},     {"Llama-3-70B qkv", 10240, 8192, 4},
    {"Llama-3-70B o", 8192, 8192, 4},         {"Llama-3-70B gate_up", 57344, 8192, 1},
    {"Llama-3-70B down", 8192, 28672, 4},     {"Mixtral gate_up", 28672, 4096, 2},
    {"Qwen3-30B-A3B gate_up", 1536, 2048, 8}, {"Qwen3-30B-A3B down", 2048, 768, 2},
    {"70B down, a rank of 8", 8192, 3584, 4}, {"70B qkv, a rank of 8", 1280, 8192, 16},
};

TEST(GemmPlanTest, PartsOfKGiveEveryMultiprocessorWarps) {
  for (const Shape& shape : kShapes) {
    EXPECT_EQ(KParts(W4A8(shape.n, shape.k)), shape.parts) << shape.name;
    // 16 channels and a part are a warp's, two stages of k at least.
    EXPECT_GE(shape.k / 128 / shape.parts, 2) << shape.name;
  }
}

TEST(GemmPlanTest, FewTokensAreSkinnyMoreAreTiled) {
  for (const Shape& shape : kShapes) {
    for (const ScaleForm form : {ScaleForm::kFolded, ScaleForm::kInteger, ScaleForm::kFloat}) {
      const GemmDesc desc = W4A8(shape.n, shape.k, form);
      for (const int64_t tokens : {1, 8}) {
        const GemmPlan plan = Choose(desc, tokens, Caps(80), false);
        EXPECT_EQ(plan.kernel, GemmKernel::kSkinny) << shape.name;
        EXPECT_EQ(plan.tile_n, 8);
        EXPECT_EQ(plan.workspace_bytes, 0);
      }
      EXPECT_EQ(Choose(desc, 9, Caps(80), false).tile_n, 16);
      EXPECT_EQ(Choose(desc, 16, Caps(80), false).kernel, GemmKernel::kSkinny);
      EXPECT_EQ(Choose(desc, 17, Caps(80), false).kernel, GemmKernel::kTiled) << shape.name;
      EXPECT_EQ(Choose(desc, 17, Caps(80), false).tile_n, 32);
      EXPECT_EQ(Choose(desc, 64, Caps(80), false).tile_n, 64);
    }
  }
}

// The order of a float sum: never a function of the number of tokens or of the device.
TEST(GemmPlanTest, PartsOfASumDependOnTheWeightAlone) {
  for (const Shape& shape : kShapes) {
    for (const GemmDesc& desc :
         {W4A8(shape.n, shape.k, ScaleForm::kFloat), Bf16(shape.n, shape.k)}) {
      const int parts = KParts(desc);
      for (const int sm : {80, 89, 90}) {
        for (int64_t tokens = 1; tokens < 5000; tokens += tokens / 3 + 1) {
          const GemmPlan plan = Choose(desc, tokens, Caps(sm), false);
          EXPECT_EQ(plan.k_parts, parts);
          EXPECT_TRUE(plan.split_k == 1 || plan.split_k == parts) << plan.split_k;
        }
      }
    }
  }
}

TEST(GemmPlanTest, EveryPlanFitsTheDeviceAndTheWorkspace) {
  const int64_t kSizes[] = {1, 15, 16, 64, 65, 768, 4096, 28672, 128256};
  for (const int sm : {80, 89, 90}) {
    const gpu::DeviceCaps caps = Caps(sm);
    for (const int64_t n : kSizes) {
      for (const int64_t k : kSizes) {
        for (const GemmDesc& desc :
             {W4A8(n, k), W4A8(n, k, ScaleForm::kInteger), W4A8(n, k, ScaleForm::kFloat),
              GemmDesc{.format = WeightFormat::kW8A8, .n = n, .k = k}, Bf16(n, k),
              GemmDesc{.format = WeightFormat::kDense, .storage = DType::kF32, .n = n, .k = k}}) {
          ASSERT_TRUE(Supports(desc, caps).ok()) << Supports(desc, caps);
          const int64_t workspace = WorkspaceBytes(desc, 3000, caps, false);
          for (const int64_t tokens : {1, 9, 17, 33, 64, 65, 127, 128, 129, 500, 1000, 3000}) {
            const GemmPlan plan = Choose(desc, tokens, caps, false);
            ASSERT_LE(plan.workspace_bytes, workspace) << ToString(desc) << " " << tokens;
            ASSERT_LE(plan.shared_bytes, caps.max_shared_bytes) << ToString(desc) << " " << tokens;
            const GemmPlan grouped = ChooseGrouped(desc, 128, tokens, caps);
            ASSERT_EQ(grouped.workspace_bytes, 0);
            ASSERT_LE(grouped.shared_bytes, caps.max_shared_bytes);
          }
        }
      }
    }
  }
}

TEST(GemmPlanTest, FewTilesShareK) {
  // Llama-3-8B down with 64 tokens: 32 tiles for 108 multiprocessors.
  const GemmPlan down = Choose(W4A8(4096, 14336), 64, Caps(80), false);
  EXPECT_EQ(down.split_k, 8);
  EXPECT_EQ(down.workspace_bytes, int64_t{8} * 64 * 4096 * 4);
  EXPECT_EQ(Choose(W4A8(28672, 4096), 64, Caps(80), false).split_k, 1);
  EXPECT_EQ(Choose(W4A8(4096, 14336), 2048, Caps(80), false).split_k, 1);
  EXPECT_EQ(Choose(W4A8(28672, 4096), 512, Caps(80), false).tile_n, 128);
}

TEST(GemmPlanTest, CublasLtTakesDenseWeightsOfSixteenBits) {
  EXPECT_EQ(Choose(Bf16(4096, 4096), 64, Caps(90), true).kernel, GemmKernel::kCublasLt);
  EXPECT_EQ(Choose(Bf16(4096, 4096), 64, Caps(90), false).kernel, GemmKernel::kTiled);
  GemmDesc f32 = Bf16(4096, 4096);
  f32.storage = DType::kF32;
  EXPECT_EQ(Choose(f32, 64, Caps(90), true).kernel, GemmKernel::kFloat);
  const GemmDesc int8 = {.format = WeightFormat::kW8A8, .n = 4096, .k = 4096};
  EXPECT_NE(Choose(int8, 64, Caps(90), true).kernel, GemmKernel::kCublasLt);
}

TEST(GemmPlanTest, GroupedTilesHoldTheRowsOfAGroup) {
  // Qwen3-30B-A3B: 8 of 128 experts a token.
  const GemmDesc expert = W4A8(1536, 2048);
  EXPECT_EQ(ChooseGrouped(expert, 128, 8, Caps(80)).tile_n, 8);
  EXPECT_EQ(ChooseGrouped(expert, 128, 32 * 8, Caps(80)).kernel, GemmKernel::kSkinny);
  EXPECT_EQ(ChooseGrouped(expert, 128, 256 * 8, Caps(80)).tile_n, 32);
  EXPECT_EQ(ChooseGrouped(expert, 128, 4096 * 8, Caps(80)).tile_n, 128);
  EXPECT_EQ(ChooseGrouped(W4A8(1536, 2048, ScaleForm::kInteger), 128, 4096 * 8, Caps(80)).tile_n,
            64);
}

TEST(GemmPlanTest, RefusesOldDevices) {
  EXPECT_THAT(std::string(Supports(W4A8(64, 128), Caps(75)).message()),
              ::testing::HasSubstr("compute capability 7.5, the oldest is 8.0"));
}

}  // namespace
}  // namespace nibble::kernels::cuda
