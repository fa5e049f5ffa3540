// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/amx_gemm.h"

#include <algorithm>
#include <cstring>

#include "base/aligned_buffer.h"
#include "kernels/device/thread_scratch.h"
#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/panel_loops.h"

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
struct BlockScratch {};

// [tiles of 16 rows, num_steps, 16, 64 bytes], in scratch memory of the calling thread.
const uint8_t* ArrangeInt8(const AmxGroups& groups, int64_t k, int64_t num_steps,
                           const GemmArgs& args, ThreadPool* pool) {
  const int64_t num_tiles = CeilDiv(args.m, kAmxTileRows);
  const int64_t tile_bytes = num_steps * kAmxTileBytes;
  uint8_t* const arranged =
      ThreadScratch<ArrangedRows, uint8_t>(static_cast<size_t>(num_tiles * tile_bytes));
  // Groups without gaps are one.
  const bool gaps = groups.packed_group != groups.group && groups.num_groups > 1;
  const int64_t num_groups = gaps ? groups.num_groups : 1;
  const int64_t group = gaps ? groups.group : k;
  pool->ParallelFor(num_tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      uint8_t* out = arranged + tile * tile_bytes;
      const int64_t rows = std::min(kAmxTileRows, args.m - tile * kAmxTileRows);
      if (rows < kAmxTileRows || k != num_steps * kAmxRowBytes) {
        std::fill_n(out, tile_bytes, uint8_t{0});
      }
      for (int64_t r = 0; r < rows; ++r) {
        const int8_t* row = args.a8.values + (tile * kAmxTileRows + r) * args.a8.stride;
        for (int64_t g = 0; g < num_groups; ++g) {
          CopyToTile(row + g * group, std::min(group, k - g * group), g * groups.packed_group,
                     out + r * kAmxRowBytes);
        }
      }
    }
  });
  return arranged;
}

const uint8_t* ArrangeBf16(int64_t k, int64_t num_steps, const GemmArgs& args, ThreadPool* pool) {
  const int64_t num_tiles = CeilDiv(args.m, kAmxTileRows);
  const int64_t tile_bytes = num_steps * kAmxTileBytes;
  uint8_t* const arranged =
      ThreadScratch<ArrangedRows, uint8_t>(static_cast<size_t>(num_tiles * tile_bytes));
  pool->ParallelFor(num_tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile * kAmxTileRows;
      amx::ArrangeBf16({.a = args.a + row * args.a_stride,
                        .a_stride = args.a_stride,
                        .rows = std::min(kAmxTileRows, args.m - row),
                        .k = k,
                        .num_steps = num_steps,
                        .out = arranged + tile * tile_bytes});
    }
  });
  return arranged;
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

void MultiplyBlocks(const AmxWeight& weight, const uint8_t* a, const GemmArgs& args,
                    ThreadPool* pool) {
  const int64_t num_steps = weight.block.num_steps;
  const int64_t num_panels = CeilDiv(weight.n, kAmxPanel);
  const AmxUnits unit =
      ChooseAmxUnits(args.m, num_steps * kAmxRowBytes, num_panels, pool->num_threads());
  const int64_t panel_units = CeilDiv(num_panels, unit.panels);
  const int64_t units = panel_units * CeilDiv(args.m, unit.rows);
  // Pieces that share the cost of configuring tiles, several for each thread.
  const int64_t grain = std::max<int64_t>(1, units / (8 * pool->num_threads()));
  pool->ParallelFor(units, grain, [&](int64_t begin, int64_t end) {
    auto* const sums = ThreadScratch<BlockScratch, int32_t>(
        static_cast<size_t>(unit.rows * unit.panels * kAmxPanel));
    auto* const scratch =
        ThreadScratch<BlockScratch, uint8_t>(static_cast<size_t>(kAmxScratchBytes));
    amx::BeginTiles();
    for (int64_t i = begin; i < end; ++i) {
      // Panels in the inner loop: the rows stay in the cache.
      const int64_t row = i / panel_units * unit.rows;
      const int64_t panel = i % panel_units * unit.panels;
      const int64_t column = panel * kAmxPanel;
      AmxBlock block = weight.block;
      SkipPanels(panel, &block);
      block.a = a + row * num_steps * kAmxRowBytes;
      block.rows = std::min(unit.rows, args.m - row);
      block.a_scales = Advance(args.a8.scales, row);
      block.num_panels = std::min(unit.panels, num_panels - panel);
      block.columns = std::min(block.num_panels * kAmxPanel, weight.n - column);
      block.bias = Advance(args.bias, column);
      block.sums = sums;
      block.scratch = scratch;
      block.d = args.d + row * args.d_stride + column;
      block.d_stride = args.d_stride;
      weight.multiply(block);
    }
    amx::EndTiles();
  });
}

// Rows [first, first + rows) of `args`.
GemmArgs RowsOf(const GemmArgs& args, int64_t first, int64_t rows) {
  GemmArgs part = args;
  part.m = rows;
  part.a = Advance(args.a, first * args.a_stride);
  part.a8 = {.values = Advance(args.a8.values, first * args.a8.stride),
             .scales = Advance(args.a8.scales, first),
             .sums = Advance(args.a8.sums, first),
             .stride = args.a8.stride};
  part.d = args.d + first * args.d_stride;
  return part;
}

// Arranges and multiplies chunk by chunk: arrange(rows of args) gives them in tiles.
template <typename Arrange>
void MultiplyChunks(const AmxWeight& weight, const GemmArgs& args, ThreadPool* pool,
                    const Arrange& arrange) {
  const int64_t rows = AmxChunkRows(args.m, weight.block.num_steps * kAmxRowBytes);
  for (int64_t first = 0; first < args.m; first += rows) {
    const GemmArgs chunk = RowsOf(args, first, std::min(rows, args.m - first));
    MultiplyBlocks(weight, arrange(chunk), chunk, pool);
  }
}

// [panels, steps, 16, panel, 4 bytes]: element k of channel n is one of 4 (int8) or 2 (bfloat16).
template <typename Element>
class TilePanels {
 public:
  static constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(Element));

  // load(n, k) is element k of output channel n.
  template <typename Load>
  TilePanels(const GemmDesc& desc, ThreadPool* pool, const Load& load)
      : num_steps_(CeilDiv(desc.k, kAmxStepRows * kPerWord)),
        elements_(AlignedBuffer<Element>::ZeroPages(
            static_cast<size_t>(CeilDiv(desc.n, kAmxPanel) * num_steps_ * kAmxPanelStepBytes) /
            sizeof(Element))) {
    pool->ParallelFor(CeilDiv(desc.n, kAmxPanel), 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin * kAmxPanel; n < std::min(end * kAmxPanel, desc.n); ++n) {
        Element* panel =
            elements_.data() + n / kAmxPanel * num_steps_ * kAmxStepRows * kAmxPanel * kPerWord;
        for (int64_t k = 0; k < desc.k; ++k) {
          panel[(k / kPerWord * kAmxPanel + n % kAmxPanel) * kPerWord + k % kPerWord] = load(n, k);
        }
      }
    });
  }
  int64_t num_steps() const { return num_steps_; }
  size_t size_bytes() const { return elements_.size_bytes(); }
  AmxBlock Block() const {
    return {.num_steps = num_steps_, .weights = reinterpret_cast<const uint8_t*>(elements_.data())};
  }

 private:
  const int64_t num_steps_;
  AlignedBuffer<Element> elements_;
};

class DenseAmx final : public GemmWeight {
 public:
  DenseAmx(const GemmVariant& variant, const GemmDesc& desc, const DenseSource& source,
           ThreadPool* pool)
      : GemmWeight(variant, desc), panels_(desc, pool, [&](int64_t n, int64_t k) {
          return ToBFloat16(LoadElement(source.weights, source.storage, n * desc.k + k)).bits;
        }) {}
  size_t size_bytes() const override { return panels_.size_bytes(); }

  void Multiply(const GemmArgs& args, ThreadPool* pool) const override {
    const AmxWeight weight = {
        .n = desc_.n, .k = desc_.k, .block = panels_.Block(), .multiply = amx::Bf16};
    MultiplyChunks(weight, args, pool, [&](const GemmArgs& rows) {
      return ArrangeBf16(desc_.k, panels_.num_steps(), rows, pool);
    });
  }

 private:
  const TilePanels<uint16_t> panels_;
};

class Int8Amx final : public GemmWeight {
 public:
  Int8Amx(const GemmVariant& variant, const GemmDesc& desc, const Int8Weight& weight,
          ThreadPool* pool)
      : GemmWeight(variant, desc),
        panels_(desc, pool,
                [&](int64_t n, int64_t k) {
                  return weight.codes[static_cast<size_t>(n * desc.k + k)];
                }),
        channel_(AlignedBuffer<float>::ZeroPages(static_cast<size_t>(RoundUp(desc.n, kAmxPanel)))) {
    std::copy(weight.scales.begin(), weight.scales.end(), channel_.begin());
  }
  size_t size_bytes() const override { return panels_.size_bytes() + channel_.size_bytes(); }

  void Multiply(const GemmArgs& args, ThreadPool* pool) const override {
    AmxWeight weight = {
        .n = desc_.n, .k = desc_.k, .block = panels_.Block(), .multiply = amx::Int8};
    weight.block.channel = channel_.data();
    const AmxGroups one = {.group = desc_.k, .packed_group = desc_.k, .num_groups = 1};
    MultiplyAmxInt8(weight, one, args, pool);
  }

 private:
  const TilePanels<int8_t> panels_;
  AlignedBuffer<float> channel_;  // [n] and zeros to a whole panel
};

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

void MultiplyAmxInt8(const AmxWeight& weight, const AmxGroups& groups, const GemmArgs& args,
                     ThreadPool* pool) {
  MultiplyChunks(weight, args, pool, [&](const GemmArgs& rows) {
    return ArrangeInt8(groups, weight.k, weight.block.num_steps, rows, pool);
  });
}

std::unique_ptr<GemmWeight> PackDenseAmx(const GemmVariant& variant, const GemmDesc& desc,
                                         const DenseSource& source, ThreadPool* pool) {
  return std::make_unique<DenseAmx>(variant, desc, source, pool);
}

std::unique_ptr<GemmWeight> PackInt8Amx(const GemmVariant& variant, const GemmDesc& desc,
                                        const Int8Weight& weight, ThreadPool* pool) {
  return std::make_unique<Int8Amx>(variant, desc, weight, pool);
}

}  // namespace nibble::kernels
