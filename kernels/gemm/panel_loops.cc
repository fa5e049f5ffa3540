// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/panel_loops.h"

#include "kernels/device/thread_scratch.h"

namespace nibble::kernels {
namespace {

// Activations of a chunk: they stay in the second-level cache from panel to panel.
constexpr int64_t kChunkBytes = int64_t{768} << 10;
// But so many tiles that the weights, read again for every chunk, cost less than multiplying.
constexpr int64_t kMinChunkTiles = 4;
// Below this, arranging on the calling thread takes less than waking the others.
constexpr int64_t kSerialBytes = int64_t{128} << 10;

}  // namespace

int64_t ChunkRows(const PanelShape& shape) {
  const int64_t tiles = kChunkBytes / (shape.groups.packed_k() * shape.max_tile_rows);
  return std::max(tiles, kMinChunkTiles) * shape.max_tile_rows;
}

RowTiles::RowTiles(const PanelShape& shape, const GemmArgs& args, int64_t first, int64_t rows,
                   ThreadPool* pool)
    : shape_(shape),
      args_(args),
      first_(first),
      rows_(rows),
      num_tiles_(CeilDiv(rows, shape.max_tile_rows)),
      tile_rows_(CeilDiv(rows, num_tiles_)) {
  num_tiles_ = CeilDiv(rows, tile_rows_);
  const PackedGroups& groups = shape.groups;
  const int64_t packed_k = groups.packed_k();
  const int8_t* a = args.a8.values + first * args.a8.stride;
  // A tile of one row without padding is the row.
  const bool copy = rows > 1 || packed_k != groups.k;
  int8_t* out = nullptr;
  if (copy) out = ThreadScratch<RowTiles, int8_t>(static_cast<size_t>(rows * packed_k));
  int32_t* starts = nullptr;
  if (shape.group_factor != 0) {
    starts = ThreadScratch<RowTiles, int32_t>(static_cast<size_t>(rows * groups.num_groups()));
  }
  a_ = copy ? out : a;
  group_starts_ = starts;
  const auto arrange = [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile * tile_rows_;
      avx2::ArrangeTile(
          {.a = a + row * args.a8.stride,
           .a_stride = args.a8.stride,
           .rows = RowsOfTile(tile),
           .k = groups.k,
           .group = groups.group,
           .step = groups.step,
           .tile = copy ? out + row * packed_k : nullptr,
           .group_starts = starts == nullptr ? nullptr : starts + row * groups.num_groups(),
           .group_factor = shape_.group_factor});
    }
  };
  if (rows * packed_k <= kSerialBytes) {
    arrange(0, num_tiles_);
  } else {
    pool->ParallelFor(num_tiles_, 1, arrange);
  }
}

RowBlock RowTiles::Block(int64_t begin, int64_t end) const {
  const int64_t row = begin * tile_rows_;
  const int64_t packed_k = shape_.groups.packed_k();
  return {.a = a_ + row * packed_k,
          .k = packed_k,
          .a_scales = args_.a8.scales + first_ + row,
          .a_sums = args_.a8.sums + first_ + row,
          .group_starts =
              group_starts_ == nullptr ? nullptr : group_starts_ + row * shape_.groups.num_groups(),
          .rows = std::min(end * tile_rows_, rows_) - row,
          .tile_rows = tile_rows_,
          .d = args_.d + (first_ + row) * args_.d_stride,
          .d_stride = args_.d_stride};
}

}  // namespace nibble::kernels
