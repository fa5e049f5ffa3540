// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How the panel variants cut their work: rows into chunks and tiles, panels and rows over threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// The packed k of a weight: groups of `group` values, padded to multiples of `step`.
struct PackedGroups {
  int64_t k;
  int64_t group;
  int64_t step;
  int64_t num_groups() const { return CeilDiv(k, group); }
  int64_t packed_group() const { return RoundUp(group, step); }
  int64_t packed_last_group() const { return RoundUp(k - (num_groups() - 1) * group, step); }
  int64_t packed_k() const { return (num_groups() - 1) * packed_group() + packed_last_group(); }
};

// What the loops need to know of a weight.
struct PanelShape {
  int64_t n;
  int64_t panel;  // output channels per panel
  PackedGroups groups;
  int32_t group_factor;   // of RowBlock.group_starts; 0: none
  int64_t max_tile_rows;  // most rows of a tile
};

// Rows of activations in tiles, in scratch memory of the calling thread (kept for its next call).
// `shape` and `args` must outlive it.
class RowTiles {
 public:
  // Tiles of [first, first + rows) of args; at most `max_tile_rows` rows each, all but the last the
  // same number.
  RowTiles(const PanelShape& shape, const GemmArgs& args, int64_t first, int64_t rows,
           ThreadPool* pool);
  int64_t num_tiles() const { return num_tiles_; }
  // Tiles [begin, end), without what depends on the panel.
  RowBlock Block(int64_t begin, int64_t end) const;

 private:
  int64_t RowsOfTile(int64_t tile) const { return std::min(tile_rows_, rows_ - tile * tile_rows_); }

  const PanelShape& shape_;
  const GemmArgs& args_;
  int64_t first_;
  int64_t rows_;
  int64_t num_tiles_;
  int64_t tile_rows_;
  const int8_t* a_;
  const int32_t* group_starts_ = nullptr;
};

// How many rows are arranged and multiplied with all panels before the next: as many as stay in the
// second-level cache.
int64_t ChunkRows(const PanelShape& shape);

// d = A * B^T over panels of integer weights: arranges activations into tiles and calls
// multiply(panel, rows) for every panel and block of rows, on all threads. RowBlock.bias, d and
// columns are those of the panel.
template <typename Multiply>
void ForPanels(const PanelShape& shape, const GemmArgs& args, ThreadPool* pool,
               const Multiply& multiply) {
  const int64_t num_panels = CeilDiv(shape.n, shape.panel);
  const int64_t threads = pool->num_threads();
  const int64_t num_chunks = CeilDiv(args.m, ChunkRows(shape));
  const int64_t chunk = CeilDiv(args.m, num_chunks);
  for (int64_t first = 0; first < args.m; first += chunk) {
    const RowTiles tiles(shape, args, first, std::min(chunk, args.m - first), pool);
    const int64_t most = kMaxBlockRows / shape.max_tile_rows;  // tiles of a block
    // Rows are split when there are not enough panels to keep all threads busy to the end.
    int64_t splits = CeilDiv(tiles.num_tiles(), most);
    while (num_panels * splits < 2 * threads && splits < tiles.num_tiles()) ++splits;
    const int64_t per_split = CeilDiv(tiles.num_tiles(), splits);
    const int64_t units = num_panels * splits;
    const int64_t grain = std::max<int64_t>(1, units / (8 * threads));
    pool->ParallelFor(units, grain, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t panel = unit / splits;
        const int64_t tile = unit % splits * per_split;
        if (tile >= tiles.num_tiles()) continue;
        RowBlock rows = tiles.Block(tile, std::min(tile + per_split, tiles.num_tiles()));
        const int64_t column = panel * shape.panel;
        rows.columns = std::min(shape.panel, shape.n - column);
        rows.bias = args.bias == nullptr ? nullptr : args.bias + column;
        rows.d += column;
        multiply(panel, rows);
      }
    });
  }
}

}  // namespace nibble::kernels
