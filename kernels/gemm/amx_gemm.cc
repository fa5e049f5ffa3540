// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/amx_gemm.h"

#include <algorithm>
#include <cstring>

#include "kernels/device/thread_scratch.h"
#include "kernels/gemm/panel_loops.h"
#include "kernels/gemm/work_list.h"

namespace nibble::kernels {
namespace {

// Rows of a block: what unpacking a panel costs (some 80 cycles a step) is divided by its 32-row
// tiles (64 cycles a step each), and 512 rows of a stretch take 256 KiB of the second-level cache.
constexpr int64_t kMaxRows = 512;
constexpr int64_t kMinRows = 64;
constexpr int64_t kRowUnit = 2 * kAmxTileRows;
// Panels of a block: each stretch of the activations is read from the second-level cache as often,
// and sums of 512 rows take 512 KiB of it.
constexpr int64_t kMaxPanels = 8;
// A block of rows that fits this whole, over all of k, stays in the second-level cache from panel
// to panel: then one panel at a time streams its weights best.
constexpr int64_t kResidentBytes = int64_t{512} << 10;

// Arranged activations of a chunk of rows, which all panels see before the next chunk: more than
// any second-level cache, so that threads have blocks of rows to share, and a bound on what long
// inputs take.
constexpr int64_t kChunkBytes = int64_t{16} << 20;

// Chunks of many products between two parallel loops; a bound on tables.
constexpr int64_t kWaveChunks = 512;

// `length` bytes of a row to byte `at` of its row of a tile [steps, 16, 64].
void CopyToTile(const int8_t* from, int64_t length, int64_t at, uint8_t* tile_row) {
  while (length > 0) {
    const int64_t offset = at % kAmxRowBytes;
    const int64_t count = std::min(length, kAmxRowBytes - offset);
    std::memcpy(tile_row + at / kAmxRowBytes * kAmxTileBytes + offset, from,
                static_cast<size_t>(count));
    from += count;
    at += count;
    length -= count;
  }
}

// Scratch memory: of the calling thread for all, and of each thread.
struct ArrangedRows {};
struct WaveWork {};
struct BlockScratch {};

const TileWeight& WeightOf(const GemmJob& job) {
  return static_cast<const TileWeight&>(*job.weight);
}

template <typename T>
T* Advance(T* pointer, int64_t count) {
  return pointer == nullptr ? nullptr : pointer + count;
}

// The weights of `block`, from panel `panel` on instead of 0.
void SkipPanels(int64_t panel, AmxBlock* block) {
  AmxInt4& int4 = block->int4;
  int4.codes = Advance(int4.codes, panel * int4.packed_k * kAmxPanel / 2);
  int4.integers = Advance(int4.integers, panel * int4.num_groups * kAmxPanel);
  int4.integer_offset = Advance(int4.integer_offset, panel * kAmxPanel);
  int4.zeros = Advance(int4.zeros, panel * int4.num_groups * kAmxPanel);
  int4.float_scales = Advance(int4.float_scales, panel * int4.num_groups * kAmxPanel);
  block->weights = Advance(block->weights, panel * block->num_steps * kAmxPanelStepBytes);
  block->channel = Advance(block->channel, panel * kAmxPanel);
}

// Rows of a job that are arranged, then multiplied with all panels.
struct TileChunk {
  const GemmJob* job;
  int64_t first;  // row of the job
  int64_t rows;
  int64_t at;      // of its tiles [tiles of 16 rows, num_steps, 16, 64 bytes] in the wave's memory
  int64_t row_at;  // of its scales there, where rows are gathered
  AmxUnits unit;
  int64_t panel_units;
};

class TileWave {
 public:
  TileWave() : chunks_(ThreadScratch<WaveWork, TileChunk>(static_cast<size_t>(kWaveChunks))) {}

  // False when there is no room; an empty wave has room.
  bool Add(const GemmJob& job, int64_t first, int64_t rows);
  void Run(ThreadPool* pool);

 private:
  void Arrange(ThreadPool* pool);
  void ArrangeTiles(const TileChunk& chunk, int64_t begin, int64_t end);
  void Multiply(ThreadPool* pool);
  void MultiplyUnits(const TileChunk& chunk, int64_t begin, int64_t end) const;
  std::span<WorkItem> Items() const {
    const auto count = static_cast<size_t>(num_chunks_);
    return {ThreadScratch<WaveWork, WorkItem>(count), count};
  }

  TileChunk* const chunks_;
  int64_t num_chunks_ = 0;
  int64_t num_bytes_ = 0;
  int64_t num_rows_ = 0;
  uint8_t* tiles_ = nullptr;
  float* scales_ = nullptr;  // [num_rows_], of gathered rows
};

int64_t RowBytes(const TileWeight& weight) { return weight.Block().num_steps * kAmxRowBytes; }

bool TileWave::Add(const GemmJob& job, int64_t first, int64_t rows) {
  const int64_t bytes = RoundUp(rows, kAmxTileRows) * RowBytes(WeightOf(job));
  const bool full = num_chunks_ == kWaveChunks || num_bytes_ + bytes > kChunkBytes;
  if (full && num_chunks_ > 0) return false;
  chunks_[num_chunks_++] = {.job = &job,
                            .first = first,
                            .rows = rows,
                            .at = num_bytes_,
                            .row_at = num_rows_,
                            .unit = {},
                            .panel_units = 0};
  num_bytes_ += bytes;
  num_rows_ += rows;
  return true;
}

void TileWave::Run(ThreadPool* pool) {
  tiles_ = ThreadScratch<ArrangedRows, uint8_t>(static_cast<size_t>(num_bytes_));
  scales_ = ThreadScratch<ArrangedRows, float>(static_cast<size_t>(num_rows_));
  Arrange(pool);
  Multiply(pool);
  num_chunks_ = num_bytes_ = num_rows_ = 0;
}

void TileWave::Arrange(ThreadPool* pool) {
  const std::span<WorkItem> items = Items();
  for (size_t i = 0; i < items.size(); ++i) {
    items[i] = {.units = CeilDiv(chunks_[i].rows, kAmxTileRows), .unit_cost = 1};
  }
  ForWork(items, pool,
          [&](int64_t i, int64_t begin, int64_t end) { ArrangeTiles(chunks_[i], begin, end); });
}

void TileWave::ArrangeTiles(const TileChunk& chunk, int64_t begin, int64_t end) {
  const GemmJob& job = *chunk.job;
  const TileWeight& weight = WeightOf(job);
  const int64_t tile_bytes = RowBytes(weight) * kAmxTileRows;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t row = tile * kAmxTileRows;
    const int64_t rows = std::min(kAmxTileRows, chunk.rows - row);
    weight.Arrange(job, chunk.first + row, rows, tiles_ + chunk.at + tile * tile_bytes);
    if (!TakesInt8(weight.desc().format)) continue;
    for (int64_t i = row; i < row + rows; ++i) {
      scales_[chunk.row_at + i] = job.args.a8.scales[job.RowOfA(chunk.first + i)];
    }
  }
}

void TileWave::Multiply(ThreadPool* pool) {
  const std::span<WorkItem> items = Items();
  const int64_t threads = CeilDiv(pool->num_threads(), num_chunks_);  // of a chunk
  for (size_t i = 0; i < items.size(); ++i) {
    TileChunk& chunk = chunks_[i];
    const TileWeight& weight = WeightOf(*chunk.job);
    const int64_t num_panels = CeilDiv(weight.desc().n, kAmxPanel);
    chunk.unit = ChooseAmxUnits(chunk.rows, RowBytes(weight), num_panels, threads);
    chunk.panel_units = CeilDiv(num_panels, chunk.unit.panels);
    items[i] = {.units = chunk.panel_units * CeilDiv(chunk.rows, chunk.unit.rows),
                .unit_cost = chunk.unit.rows * chunk.unit.panels};
  }
  ForWork(items, pool,
          [&](int64_t i, int64_t begin, int64_t end) { MultiplyUnits(chunks_[i], begin, end); });
}

void TileWave::MultiplyUnits(const TileChunk& chunk, int64_t begin, int64_t end) const {
  const GemmArgs& args = chunk.job->args;
  const TileWeight& weight = WeightOf(*chunk.job);
  const AmxUnits& unit = chunk.unit;
  const int64_t num_panels = CeilDiv(weight.desc().n, kAmxPanel);
  auto* const sums = ThreadScratch<BlockScratch, int32_t>(
      static_cast<size_t>(unit.rows * unit.panels * kAmxPanel));
  auto* const scratch = ThreadScratch<BlockScratch, uint8_t>(static_cast<size_t>(kAmxScratchBytes));
  amx::BeginTiles();
  for (int64_t i = begin; i < end; ++i) {
    // Panels in the inner loop: the rows stay in the cache.
    const int64_t row = i / chunk.panel_units * unit.rows;
    const int64_t panel = i % chunk.panel_units * unit.panels;
    const int64_t column = panel * kAmxPanel;
    AmxBlock block = weight.Block();
    SkipPanels(panel, &block);
    block.a = tiles_ + chunk.at + row * block.num_steps * kAmxRowBytes;
    block.rows = std::min(unit.rows, chunk.rows - row);
    block.a_scales = scales_ + chunk.row_at + row;
    block.num_panels = std::min(unit.panels, num_panels - panel);
    block.columns = std::min(block.num_panels * kAmxPanel, weight.desc().n - column);
    block.bias = Advance(args.bias, column);
    block.sums = sums;
    block.scratch = scratch;
    block.d = args.d + (chunk.first + row) * args.d_stride + column;
    block.d_stride = args.d_stride;
    weight.Multiply(block);
  }
  amx::EndTiles();
}

}  // namespace

int64_t AmxChunkRows(int64_t m, int64_t row_bytes) {
  const int64_t most = std::max(kMaxRows, kChunkBytes / row_bytes / kMaxRows * kMaxRows);
  return RoundUp(CeilDiv(m, CeilDiv(m, most)), kRowUnit);
}

AmxUnits ChooseAmxUnits(int64_t m, int64_t row_bytes, int64_t num_panels, int64_t num_threads) {
  AmxUnits unit = {};
  unit.rows = RoundUp(CeilDiv(m, CeilDiv(m, kMaxRows)), kRowUnit);
  unit.panels = unit.rows * row_bytes <= kResidentBytes ? 1 : std::min(kMaxPanels, num_panels);
  // Work for every thread, a little more than one piece each; rows last, because every block of
  // rows unpacks the weights again.
  const int64_t num_blocks = CeilDiv(m, unit.rows);
  while (unit.panels > 1 && CeilDiv(num_panels, unit.panels) * num_blocks < 2 * num_threads) {
    unit.panels = CeilDiv(unit.panels, 2);
  }
  const int64_t blocks_wanted = CeilDiv(num_threads, CeilDiv(num_panels, unit.panels));
  if (num_blocks < blocks_wanted) {
    const int64_t rows = std::max(kMinRows, RoundUp(CeilDiv(m, blocks_wanted), kRowUnit));
    unit.rows = std::min(unit.rows, rows);
  }
  return unit;
}

void ArrangeInt8Tile(const AmxGroups& groups, int64_t num_steps, const GemmJob& job, int64_t first,
                     int64_t rows, uint8_t* tile) {
  const int64_t k = job.weight->desc().k;
  // Groups without gaps are one.
  const bool gaps = groups.packed_group != groups.group && groups.num_groups > 1;
  const int64_t num_groups = gaps ? groups.num_groups : 1;
  const int64_t group = gaps ? groups.group : k;
  if (rows < kAmxTileRows || k != num_steps * kAmxRowBytes) {
    std::fill_n(tile, num_steps * kAmxTileBytes, uint8_t{0});
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int8_t* row = job.args.a8.values + job.RowOfA(first + r) * job.args.a8.stride;
    for (int64_t g = 0; g < num_groups; ++g) {
      CopyToTile(row + g * group, std::min(group, k - g * group), g * groups.packed_group,
                 tile + r * kAmxRowBytes);
    }
  }
}

void MultiplyTiles(std::span<const GemmJob> jobs, ThreadPool* pool) {
  TileWave wave;
  for (const GemmJob& job : jobs) {
    const int64_t chunk = AmxChunkRows(job.args.m, RowBytes(WeightOf(job)));
    for (int64_t first = 0; first < job.args.m; first += chunk) {
      const int64_t rows = std::min(chunk, job.args.m - first);
      if (wave.Add(job, first, rows)) continue;
      wave.Run(pool);
      wave.Add(job, first, rows);
    }
  }
  wave.Run(pool);
}

}  // namespace nibble::kernels
