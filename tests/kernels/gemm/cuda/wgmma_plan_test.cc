// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <set>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/gemm/cuda/gemm_plan.h"
#include "kernels/gemm/cuda/wgmma_gemm.h"
#include "kernels/gemm/cuda/wgmma_schedule.h"

namespace nibble::kernels::cuda {
namespace {

const gpu::DeviceCaps kH100 = {
    .name = "H100", .sm = 90, .num_sms = 132, .max_shared_bytes = 227 * 1024};

GemmDesc Int4(int64_t n, int64_t k, ScaleForm form = ScaleForm::kFolded, int64_t group = 128) {
  return {.format = WeightFormat::kW4A8, .scale_form = form, .n = n, .k = k, .group_size = group};
}

TEST(WgmmaSchedule, TilesCoverEveryStageOfEveryOutputOnce) {
  for (const WgmmaGrid& grid : {WgmmaGrid{3, 2, 1, 5}, WgmmaGrid{2, 3, 4, 11},
                                WgmmaGrid{1, 1, 8, 8}, WgmmaGrid{5, 1, 16, 17}}) {
    std::set<std::tuple<int, int, int>> seen;  // channel tile, token tile, stage
    for (int i = 0; i < grid.num_tiles(); ++i) {
      const WgmmaTile tile = WgmmaTileAt(grid, i);
      EXPECT_LT(tile.stage_begin, tile.stage_end);
      EXPECT_LT(tile.split, grid.splits);
      for (int stage = tile.stage_begin; stage < tile.stage_end; ++stage) {
        EXPECT_TRUE(seen.insert({tile.channel_tile, tile.token_tile, stage}).second);
        EXPECT_LT(tile.channel_tile, grid.channel_tiles);
        EXPECT_LT(tile.token_tile, grid.token_tiles);
      }
    }
    EXPECT_EQ(std::ssize(seen), grid.channel_tiles * grid.token_tiles * grid.num_stages);
  }
}

TEST(WgmmaSchedule, TilesOfTheSameWeightsFollowEachOther) {
  const WgmmaGrid grid = {2, 3, 2, 4};
  for (int i = 1; i < grid.num_tiles(); ++i) {
    const WgmmaTile before = WgmmaTileAt(grid, i - 1);
    const WgmmaTile tile = WgmmaTileAt(grid, i);
    EXPECT_EQ(tile.token_tile, (before.token_tile + 1) % 3);
    if (tile.token_tile == 0) continue;
    EXPECT_EQ(tile.channel_tile, before.channel_tile);
    EXPECT_EQ(tile.stage_begin, before.stage_begin);
  }
}

TEST(WgmmaSchedule, PiecesAreThePartsOfFloatSums) {
  const GemmDesc desc = Int4(64, 128 * 37, ScaleForm::kFloat);
  const int parts = KParts(desc);
  ASSERT_GT(parts, 2);
  GemmKernelArgs args = {};
  args.num_stages = 37;
  while (1 << args.parts_shift < parts) ++args.parts_shift;
  const WgmmaGrid grid = {1, 1, parts, 37};
  for (int i = 0; i < parts; ++i) {
    EXPECT_EQ(WgmmaTileAt(grid, i).stage_begin, PartBegin(args, i));
    EXPECT_EQ(WgmmaTileAt(grid, i).stage_end, PartBegin(args, i + 1));
  }
}

TEST(WgmmaSchedule, GroupsAreFoundByTheirTiles) {
  const std::vector<std::vector<int>> tiles_of = {
      {3}, {0, 0, 2, 0, 1, 5, 0}, {1, 1, 1, 1}, {0, 4}, {4, 0}};
  for (const std::vector<int>& tiles : tiles_of) {
    std::vector<int> starts = {0};
    std::vector<int> owners;
    for (size_t g = 0; g < tiles.size(); ++g) {
      starts.push_back(starts.back() + tiles[g]);
      owners.insert(owners.end(), static_cast<size_t>(tiles[g]), static_cast<int>(g));
    }
    for (size_t i = 0; i < owners.size(); ++i) {
      EXPECT_EQ(WgmmaGroupAt(starts.data(), static_cast<int>(tiles.size()), static_cast<int>(i)),
                owners[i]);
    }
  }
}

TEST(WgmmaSchedule, StagesFillSharedMemory) {
  for (const Form form : {Form::kFolded, Form::kInteger, Form::kFloatScales, Form::kInt8}) {
    for (const int tokens : kWgmmaTokens) {
      if (!WgmmaTakes(form, false, false, tokens)) continue;
      const int stages = WgmmaStages(form, tokens);
      EXPECT_GE(stages, 4) << tokens;  // weights for some 32 KiB under way
      EXPECT_LE(WgmmaFixedBytes(tokens) + stages * WgmmaStageBytes(form, tokens),
                kWgmmaSharedBytes);
    }
  }
}

TEST(WgmmaPlan, SupportsHopperAndIntegerFamiliesAlone) {
  EXPECT_TRUE(SupportsWgmma(Int4(4096, 4096), kH100).ok());
  EXPECT_TRUE(SupportsWgmma({.format = WeightFormat::kW8A8, .n = 64, .k = 64}, kH100).ok());
  EXPECT_EQ(SupportsWgmma({.storage = DType::kBf16, .n = 64, .k = 64}, kH100).code(),
            absl::StatusCode::kUnimplemented);
  for (const int sm : {80, 89, 100}) {
    gpu::DeviceCaps caps = kH100;
    caps.sm = sm;
    EXPECT_EQ(SupportsWgmma(Int4(4096, 4096), caps).code(), absl::StatusCode::kUnimplemented);
  }
  gpu::DeviceCaps small = kH100;
  small.max_shared_bytes = 99 * 1024;
  EXPECT_EQ(SupportsWgmma(Int4(4096, 4096), small).code(), absl::StatusCode::kUnimplemented);
}

TEST(WgmmaPlan, ATileHoldsTheTokensAndPiecesGiveAllMultiprocessorsWork) {
  // Few tokens: one tile of them, and as many pieces of k as there are multiprocessors.
  const GemmPlan down = PlanWgmma(Int4(4096, 14336), 32, kH100);
  EXPECT_EQ(down.tile_n, 32);
  EXPECT_EQ(down.split_k, 4);
  EXPECT_EQ(down.blocks, 128);
  // Enough output channels: k is whole.
  const GemmPlan gate_up = PlanWgmma(Int4(28672, 4096), 64, kH100);
  EXPECT_EQ(gate_up.tile_n, 64);
  EXPECT_EQ(gate_up.split_k, 1);
  EXPECT_EQ(gate_up.workspace_bytes, 0);
  EXPECT_EQ(gate_up.blocks, 132);
  // Many tokens: large tiles, k whole.
  const GemmPlan many = PlanWgmma(Int4(28672, 4096), 2048, kH100);
  EXPECT_GE(many.tile_n, 128);
  EXPECT_EQ(many.split_k, 1);
}

TEST(WgmmaPlan, EveryPlanHasAKernel) {
  for (const ScaleForm form : {ScaleForm::kFolded, ScaleForm::kInteger, ScaleForm::kFloat}) {
    for (const int64_t group : {32, 64, 128, 4096}) {
      for (const int64_t tokens : {1, 8, 17, 64, 100, 300, 5000}) {
        const GemmDesc desc = Int4(4096, 4096, form, group);
        const GemmPlan plan = PlanWgmma(desc, tokens, kH100);
        EXPECT_TRUE(WgmmaTakes(FormOf(desc), false, group < 128, plan.tile_n));
        EXPECT_TRUE(form != ScaleForm::kFloat || plan.split_k == 1 || plan.split_k == KParts(desc));
        const GemmPlan grouped = PlanWgmmaGrouped(desc, 8, tokens, kH100);
        EXPECT_TRUE(WgmmaTakes(FormOf(desc), true, group < 128, grouped.tile_n));
        EXPECT_EQ(grouped.workspace_bytes, 0);
      }
    }
  }
}

TEST(WgmmaPlan, WorkspaceIsEnoughForAnyNumberOfTokens) {
  for (const GemmDesc& desc : {Int4(4096, 14336), Int4(6144, 4096), Int4(200, 8192),
                               Int4(28672, 4096), Int4(4096, 14336, ScaleForm::kFloat)}) {
    const int64_t bytes = WgmmaWorkspaceBytes(desc, 3000, kH100);
    for (int64_t tokens = 1; tokens <= 3000; tokens += 7) {
      EXPECT_LE(PlanWgmma(desc, tokens, kH100).workspace_bytes, bytes) << tokens;
    }
    EXPECT_LE(bytes, int64_t{64} << 20);
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda
