// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which tile a block of the wgmma kernel takes next, and how its shared memory is divided: pure
// functions, for the kernel, the plan and the tests alike.
//
// A block takes tiles b, b + number of blocks, ... of one list. Tiles that read the same weights
// follow each other, so that all but the first find them in the second-level cache.
#pragma once

#include <cstdint>

#include "kernels/gemm/cuda/gemm_kernels.h"

namespace nibble::kernels::cuda {

inline constexpr int kWgmmaChannels = 128;  // output channels of a tile: two math warpgroups of 64
inline constexpr int kWgmmaUnits = kWgmmaChannels / static_cast<int>(kUnitChannels);
inline constexpr int kWgmmaStageK = static_cast<int>(kIntegerStageK);
inline constexpr int kWgmmaMaxGroups = 1024;

// Forms with a second set of sums, those of one group, which are scaled and added at its end.
constexpr bool WgmmaDrains(Form form) {
  return form == Form::kInteger || form == Form::kFloatScales;
}

// Tokens of a tile, for which there are kernels. A lane has half as many sums, in one set (folded,
// W8A8), two (integer) or three (float: of a group, of a part of k, of all). Gathered rows are
// those of experts, where a wider tile is seldom full. Groups of less than a stage are rare.
inline constexpr int kWgmmaTokens[] = {8, 16, 32, 64, 96, 128, 192, 256};
constexpr bool WgmmaTakes(Form form, bool gathers, bool short_groups, int tokens) {
  const int most = form == Form::kFloatScales                          ? 64
                   : form == Form::kInteger || gathers || short_groups ? 128
                                                                       : 256;
  if (tokens > most) return false;
  return short_groups ? tokens == 16 || tokens == most : !gathers || tokens != 96;
}

// ---- Shared memory ----

constexpr int WgmmaStageBytes(Form form, int tokens) {
  return tokens * kWgmmaStageK +
         kWgmmaUnits * (UnitStageBytes(form) + ScaleStageBytes(form) + ZeroStageBytes(form));
}
// Floats of a row of the tile that waits to be stored: 64 channels, and 4 so that the writes of a
// warp (8 channels of 4 pairs of tokens) meet different banks.
inline constexpr int kWgmmaStagedStride = 68;
constexpr int WgmmaStagedTokens(int tokens) { return tokens < 32 ? tokens : 32; }
// What is there once: outputs on their way, the tiles of groups, barriers and the rest.
constexpr int WgmmaFixedBytes(int tokens) {
  return 2 * WgmmaStagedTokens(tokens) * kWgmmaStagedStride * 4 + kWgmmaMaxGroups * 4 + 1536;
}
inline constexpr int kWgmmaSharedBytes = 227 * 1024;  // of a block: all that an SM has
// More would not help: 12 stages of 8 KiB of weights alone are three times what memory has on its
// way to a multiprocessor.
constexpr int WgmmaStages(Form form, int tokens) {
  constexpr int kMost = 12;
  const int stages = (kWgmmaSharedBytes - WgmmaFixedBytes(tokens)) / WgmmaStageBytes(form, tokens);
  return stages < kMost ? stages : kMost;
}

// ---- Tiles ----

// The tiles of one product.
struct WgmmaGrid {
  int channel_tiles = 0;
  int token_tiles = 0;
  int splits = 1;      // pieces of k, 1..16, each a tile of its own; as PartBegin cuts
  int num_stages = 0;  // of all of k, below 2^20

  constexpr int num_tiles() const { return channel_tiles * token_tiles * splits; }
};

struct WgmmaTile {
  int channel_tile;
  int token_tile;
  int split;
  int stage_begin;
  int stage_end;
};

// Rising in channel_tile, then split, then token_tile.
constexpr WgmmaTile WgmmaTileAt(const WgmmaGrid& grid, int index) {
  const int rest = index / grid.token_tiles;
  const int split = rest % grid.splits;
  return {.channel_tile = rest / grid.splits,
          .token_tile = index % grid.token_tiles,
          .split = split,
          .stage_begin = grid.num_stages * split / grid.splits,
          .stage_end = grid.num_stages * (split + 1) / grid.splits};
}

// The group of a tile: the largest g with starts[g] <= index, where starts[g] is the number of
// tiles of all groups before g. REQUIRES starts[0] == 0, index < starts[num_groups].
constexpr int WgmmaGroupAt(const int* starts, int num_groups, int index) {
  int low = 0;
  int high = num_groups;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (starts[middle] <= index) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace nibble::kernels::cuda
