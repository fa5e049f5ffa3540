// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Integer weights in panels times int8 rows, of one product or of many: rows are brought into tiles
// in one parallel loop, and multiplied with panels in another.

#include <algorithm>

#include "kernels/device/thread_scratch.h"
#include "kernels/gemm/panel_loops.h"
#include "kernels/gemm/work_list.h"

namespace nibble::kernels {
namespace {

// Rows of a job that stay in the second-level cache from panel to panel.
constexpr int64_t kChunkBytes = int64_t{768} << 10;
// But so many tiles that the weights, read again for every chunk, cost less than multiplying.
constexpr int64_t kMinChunkTiles = 4;
// Rows of all chunks between two loops: a bound on what long inputs take.
constexpr int64_t kWaveBytes = int64_t{4} << 20;
constexpr int64_t kWaveChunks = 512;
// Below this, arranging on the calling thread takes less than waking the others.
constexpr int64_t kSerialBytes = int64_t{128} << 10;
// What reading a panel from memory costs, in rows to multiply it with.
constexpr int64_t kPanelCost = 8;

const IntegerPanels& WeightOf(const GemmJob& job) {
  return static_cast<const IntegerPanels&>(*job.weight);
}

// Rows of activations in tiles of equal height (but for the last). Weights that read the same rows
// share them.
struct Chunk {
  const GemmJob* job;  // the first of those that read it
  const RowLayout* layout;
  int64_t first;  // row of the job
  int64_t rows;
  int64_t num_tiles;
  int64_t tile_rows;
  bool copied;    // else it is one row, read where it is
  bool gathered;  // scales and sums too
  // Into the wave's memory: bytes of tiles; group starts; scales and sums.
  int64_t tiles_at;
  int64_t starts_at;
  int64_t row_at;
};

// A job's product with a chunk.
struct Part {
  const GemmJob* job;
  const Chunk* chunk;
  int64_t splits;  // of the chunk's rows
  int64_t split_tiles;
};

// Scratch memory of the calling thread.
struct Rows {};
struct RowScales {};
struct RowSums {};
struct Arranging {};
struct Multiplying {};

class Wave {
 public:
  explicit Wave(size_t num_jobs)
      : max_parts_(kWaveChunks + static_cast<int64_t>(num_jobs)),
        chunks_(ThreadScratch<Rows, Chunk>(static_cast<size_t>(kWaveChunks))),
        parts_(ThreadScratch<Rows, Part>(static_cast<size_t>(max_parts_))) {}

  // False when there is no room for rows [first, first + rows) of `jobs`, which all read them: an
  // empty wave has room.
  bool Add(std::span<const GemmJob> jobs, int64_t first, int64_t rows);
  void Run(ThreadPool* pool);

 private:
  void Arrange(ThreadPool* pool);
  void ArrangeTiles(const Chunk& chunk, int64_t begin, int64_t end);
  void Multiply(ThreadPool* pool);
  void MultiplyUnits(const Part& part, int64_t begin, int64_t end) const;
  RowBlock Block(const Part& part, int64_t begin, int64_t end) const;

  const int64_t max_parts_;
  Chunk* const chunks_;
  Part* const parts_;
  int64_t num_chunks_ = 0;
  int64_t num_parts_ = 0;
  int64_t num_bytes_ = 0;   // of rows, copied or not
  int64_t num_starts_ = 0;  // of groups
  int64_t num_rows_ = 0;    // gathered
  int8_t* tiles_ = nullptr;
  int32_t* starts_ = nullptr;
  float* scales_ = nullptr;
  int32_t* sums_ = nullptr;
};

bool Wave::Add(std::span<const GemmJob> jobs, int64_t first, int64_t rows) {
  const auto num_jobs = static_cast<int64_t>(jobs.size());
  const RowLayout& layout = WeightOf(jobs[0]).row_layout();
  const int64_t bytes = RoundUp(rows * layout.groups.packed_k(), 64);
  const bool full = num_chunks_ == kWaveChunks || num_parts_ + num_jobs > max_parts_ ||
                    num_bytes_ + bytes > kWaveBytes;
  if (full && num_chunks_ > 0) return false;
  Chunk& chunk = chunks_[num_chunks_++];
  const int64_t tile_rows = CeilDiv(rows, CeilDiv(rows, layout.max_tile_rows));
  chunk = {.job = &jobs[0],
           .layout = &layout,
           .first = first,
           .rows = rows,
           .num_tiles = CeilDiv(rows, tile_rows),
           .tile_rows = tile_rows,
           // A tile of one row without padding is the row.
           .copied = rows > 1 || layout.groups.packed_k() != layout.groups.k,
           .gathered = jobs[0].a_rows != nullptr && rows > 1,
           .tiles_at = num_bytes_,
           .starts_at = num_starts_,
           .row_at = num_rows_};
  num_bytes_ += bytes;
  if (layout.group_factor != 0) num_starts_ += rows * layout.groups.num_groups();
  if (chunk.gathered) num_rows_ += rows;
  for (const GemmJob& job : jobs) {
    parts_[num_parts_++] = {.job = &job, .chunk = &chunk, .splits = 1, .split_tiles = 0};
  }
  return true;
}

void Wave::Run(ThreadPool* pool) {
  tiles_ = ThreadScratch<Rows, int8_t>(static_cast<size_t>(num_bytes_));
  starts_ = ThreadScratch<Rows, int32_t>(static_cast<size_t>(num_starts_));
  scales_ = ThreadScratch<RowScales, float>(static_cast<size_t>(num_rows_));
  sums_ = ThreadScratch<RowSums, int32_t>(static_cast<size_t>(num_rows_));
  Arrange(pool);
  Multiply(pool);
  num_chunks_ = num_parts_ = num_bytes_ = num_starts_ = num_rows_ = 0;
}

void Wave::Arrange(ThreadPool* pool) {
  if (num_bytes_ <= kSerialBytes) {
    for (int64_t i = 0; i < num_chunks_; ++i) ArrangeTiles(chunks_[i], 0, chunks_[i].num_tiles);
    return;
  }
  auto* const items = ThreadScratch<Arranging, WorkItem>(static_cast<size_t>(num_chunks_));
  for (int64_t i = 0; i < num_chunks_; ++i) {
    items[i] = {.units = chunks_[i].num_tiles, .unit_cost = chunks_[i].tile_rows};
  }
  ForWork({items, static_cast<size_t>(num_chunks_)}, pool,
          [&](int64_t i, int64_t begin, int64_t end) { ArrangeTiles(chunks_[i], begin, end); });
}

void Wave::ArrangeTiles(const Chunk& chunk, int64_t begin, int64_t end) {
  const RowLayout& layout = *chunk.layout;
  const PackedGroups& groups = layout.groups;
  const QuantizedRows& a8 = chunk.job->args.a8;
  const int32_t* a_rows = chunk.job->a_rows;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t row = tile * chunk.tile_rows;
    const int64_t from = chunk.first + row;
    const int64_t rows = std::min(chunk.tile_rows, chunk.rows - row);
    int8_t* out = chunk.copied ? tiles_ + chunk.tiles_at + row * groups.packed_k() : nullptr;
    int32_t* starts =
        layout.group_factor == 0 ? nullptr : starts_ + chunk.starts_at + row * groups.num_groups();
    avx2::ArrangeTile({.a = a_rows == nullptr ? a8.values + from * a8.stride : a8.values,
                       .a_stride = a8.stride,
                       .a_rows = a_rows == nullptr ? nullptr : a_rows + from,
                       .rows = rows,
                       .k = groups.k,
                       .group = groups.group,
                       .step = groups.step,
                       .tile = out,
                       .group_starts = starts,
                       .group_factor = layout.group_factor});
    if (!chunk.gathered) continue;
    for (int64_t i = 0; i < rows; ++i) {
      scales_[chunk.row_at + row + i] = a8.scales[a_rows[from + i]];
      sums_[chunk.row_at + row + i] = a8.sums[a_rows[from + i]];
    }
  }
}

void Wave::Multiply(ThreadPool* pool) {
  const int64_t threads = pool->num_threads();
  int64_t panel_rows = 0;
  for (int64_t i = 0; i < num_parts_; ++i) {
    const IntegerPanels& weight = WeightOf(*parts_[i].job);
    panel_rows += CeilDiv(weight.desc().n, weight.panel()) * parts_[i].chunk->rows;
  }
  // Rows are split where one unit would keep a thread busy when the others are done.
  const int64_t fair_rows = std::max<int64_t>(1, panel_rows / (2 * threads));
  auto* const items = ThreadScratch<Multiplying, WorkItem>(static_cast<size_t>(num_parts_));
  for (int64_t i = 0; i < num_parts_; ++i) {
    Part& part = parts_[i];
    const IntegerPanels& weight = WeightOf(*part.job);
    const Chunk& chunk = *part.chunk;
    const int64_t most = kMaxBlockRows / chunk.layout->max_tile_rows;  // tiles of a block
    const int64_t splits = std::max(CeilDiv(chunk.num_tiles, most), CeilDiv(chunk.rows, fair_rows));
    part.split_tiles = CeilDiv(chunk.num_tiles, std::min(splits, chunk.num_tiles));
    part.splits = CeilDiv(chunk.num_tiles, part.split_tiles);
    items[i] = {.units = CeilDiv(weight.desc().n, weight.panel()) * part.splits,
                .unit_cost = chunk.rows / part.splits + kPanelCost};
  }
  ForWork({items, static_cast<size_t>(num_parts_)}, pool,
          [&](int64_t i, int64_t begin, int64_t end) { MultiplyUnits(parts_[i], begin, end); });
}

void Wave::MultiplyUnits(const Part& part, int64_t begin, int64_t end) const {
  const IntegerPanels& weight = WeightOf(*part.job);
  const float* bias = part.job->args.bias;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t panel = unit / part.splits;
    const int64_t tile = unit % part.splits * part.split_tiles;
    RowBlock rows = Block(part, tile, std::min(tile + part.split_tiles, part.chunk->num_tiles));
    const int64_t column = panel * weight.panel();
    rows.columns = std::min(weight.panel(), weight.desc().n - column);
    rows.bias = bias == nullptr ? nullptr : bias + column;
    rows.d += column;
    weight.MultiplyPanel(panel, rows);
  }
}

// Tiles [begin, end), without what depends on the panel.
RowBlock Wave::Block(const Part& part, int64_t begin, int64_t end) const {
  const Chunk& chunk = *part.chunk;
  const PackedGroups& groups = chunk.layout->groups;
  const GemmArgs& args = part.job->args;
  const int64_t row = begin * chunk.tile_rows;
  const int64_t from = part.job->RowOfA(chunk.first + row);  // scales and sums, where not gathered
  return {.a = chunk.copied ? tiles_ + chunk.tiles_at + row * groups.packed_k()
                            : args.a8.values + from * args.a8.stride,
          .k = groups.packed_k(),
          .a_scales = chunk.gathered ? scales_ + chunk.row_at + row : args.a8.scales + from,
          .a_sums = chunk.gathered ? sums_ + chunk.row_at + row : args.a8.sums + from,
          .group_starts = chunk.layout->group_factor == 0
                              ? nullptr
                              : starts_ + chunk.starts_at + row * groups.num_groups(),
          .rows = std::min(end * chunk.tile_rows, chunk.rows) - row,
          .tile_rows = chunk.tile_rows,
          .bias = nullptr,
          .d = args.d + (chunk.first + row) * args.d_stride,
          .d_stride = args.d_stride,
          .columns = 0};
}

bool ShareRows(const GemmJob& a, const GemmJob& b) {
  return a.args.m == b.args.m && a.a_rows == b.a_rows && a.args.a8.values == b.args.a8.values &&
         a.args.a8.stride == b.args.a8.stride &&
         WeightOf(a).row_layout() == WeightOf(b).row_layout();
}

// How many rows are arranged and multiplied with all panels before the next.
int64_t ChunkRows(const RowLayout& layout) {
  const int64_t tiles = kChunkBytes / (layout.groups.packed_k() * layout.max_tile_rows);
  return std::max(tiles, kMinChunkTiles) * layout.max_tile_rows;
}

}  // namespace

void MultiplyIntegerPanels(std::span<const GemmJob> jobs, ThreadPool* pool) {
  Wave wave(jobs.size());
  for (size_t begin = 0; begin < jobs.size();) {
    size_t end = begin + 1;
    while (end < jobs.size() && ShareRows(jobs[begin], jobs[end])) ++end;
    const std::span<const GemmJob> sharing = jobs.subspan(begin, end - begin);
    const int64_t m = jobs[begin].args.m;
    const int64_t chunk = CeilDiv(m, CeilDiv(m, ChunkRows(WeightOf(jobs[begin]).row_layout())));
    for (int64_t first = 0; first < m; first += chunk) {
      const int64_t rows = std::min(chunk, m - first);
      // Chunks of one job one after another: all threads read its weights, again, at one pace.
      if (first == 0 && wave.Add(sharing, first, rows)) continue;
      wave.Run(pool);
      wave.Add(sharing, first, rows);
    }
    begin = end;
  }
  wave.Run(pool);
}

}  // namespace nibble::kernels
