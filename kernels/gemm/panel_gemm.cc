// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Packing into panels and the loops over panels and blocks of rows, shared by the variants whose
// inner loops gemm_kernels.h declares.

#include <algorithm>
#include <cstring>

#include "base/aligned_buffer.h"
#include "kernels/gemm/amx_gemm.h"
#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/gemm_kernels.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// Splits [0, m) x [0, num_panels) over the threads; body(panel, first row, rows). Rows come in
// equal blocks of whole tiles; a block's panel of weights is read once.
template <typename Body>
void ForBlocks(int64_t m, int64_t tile_rows, int64_t num_panels, ThreadPool* pool,
               const Body& body) {
  const int64_t num_blocks = CeilDiv(m, kMaxBlockRows / tile_rows * tile_rows);
  const int64_t rows = RoundUp(CeilDiv(m, num_blocks), tile_rows);
  const int64_t units = num_panels * num_blocks;
  // Some pieces per thread, so that a thread that lost its core for a while does not hold up the
  // others; not more, because panels that follow each other stream best.
  const int64_t grain = std::max<int64_t>(1, units / (8 * pool->num_threads()));
  pool->ParallelFor(units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % num_blocks * rows;
      if (first < m) body(unit / num_blocks, first, std::min(rows, m - first));
    }
  });
}

class DensePanels final : public GemmWeight {
 public:
  DensePanels(const GemmVariant& variant, const GemmDesc& desc, const DenseSource& source,
              ThreadPool* pool)
      : GemmWeight(variant, desc),
        kernels_(*variant.dense_kernels),
        num_panels_(CeilDiv(desc.n, kernels_.panel)),
        panel_bytes_(desc.k * kernels_.panel * static_cast<int64_t>(SizeOf(desc.storage))),
        elements_(AlignedBuffer<uint8_t>::Zeroed(static_cast<size_t>(num_panels_ * panel_bytes_))) {
    pool->ParallelFor(num_panels_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) PackPanel(source, panel);
    });
  }
  size_t size_bytes() const override { return elements_.size(); }

  void Multiply(const GemmArgs& args, ThreadPool* pool) const override {
    ForBlocks(args.m, kernels_.tile_rows, num_panels_, pool,
              [&](int64_t panel, int64_t row, int64_t rows) {
                const int64_t column = panel * kernels_.panel;
                kernels_.multiply({
                    .weights = elements_.data() + panel * panel_bytes_,
                    .k = desc_.k,
                    .columns = std::min(kernels_.panel, desc_.n - column),
                    .bias = args.bias == nullptr ? nullptr : args.bias + column,
                    .a = args.a + row * args.a_stride,
                    .a_stride = args.a_stride,
                    .rows = rows,
                    .d = args.d + row * args.d_stride + column,
                    .d_stride = args.d_stride,
                });
              });
  }

 private:
  // Where column `c` of a panel lies in the panel's elements of one k.
  int64_t Position(int64_t c) const {
    if (desc_.storage != DType::kBf16) return c;
    const int64_t vector = c / kernels_.lanes;
    return (vector / 2 * kernels_.lanes + c % kernels_.lanes) * 2 + vector % 2;
  }

  void PackPanel(const DenseSource& source, int64_t panel) {
    uint8_t* out = elements_.data() + panel * panel_bytes_;
    const int64_t columns = std::min(kernels_.panel, desc_.n - panel * kernels_.panel);
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t row = panel * kernels_.panel + c;
      const int64_t position = Position(c);
      for (int64_t k = 0; k < desc_.k; ++k) {
        const float value = LoadElement(source.weights, source.storage, row * desc_.k + k);
        StoreElement(value, desc_.storage, k * kernels_.panel + position, out);
      }
    }
  }

  const DenseKernels& kernels_;
  const int64_t num_panels_;
  const int64_t panel_bytes_;
  AlignedBuffer<uint8_t> elements_;  // [num_panels, k, panel] of desc.storage
};

class Int4Panels final : public GemmWeight {
 public:
  Int4Panels(const GemmVariant& variant, const GemmDesc& desc, const Int4Source& source,
             ThreadPool* pool)
      : GemmWeight(variant, desc), kernels_(*variant.int4_kernels) {
    const int64_t panel = kernels_.panel;
    num_panels_ = CeilDiv(desc.n, panel);
    // Groups longer than a kernel takes are cut; CheckW4A8 saw to it that the cuts meet their ends.
    group_ = std::min({desc.group_size, desc.k, kMaxPackedGroup});
    num_groups_ = CeilDiv(desc.k, group_);
    packed_group_ = RoundUp(group_, 8);
    packed_last_group_ = RoundUp(desc.k - (num_groups_ - 1) * group_, 8);
    packed_k_ = (num_groups_ - 1) * packed_group_ + packed_last_group_;
    const auto per_group = static_cast<size_t>(num_panels_ * num_groups_ * panel);
    codes_ =
        AlignedBuffer<uint8_t>::Zeroed(static_cast<size_t>(num_panels_ * packed_k_ * panel / 2));
    if (desc.scale_form == ScaleForm::kFloat) {
      float_scales_ = AlignedBuffer<float>::Zeroed(per_group);
    } else {
      integers_ = AlignedBuffer<uint8_t>::Zeroed(per_group);
      integer_offset_ = AlignedBuffer<int32_t>::Zeroed(static_cast<size_t>(num_panels_ * panel));
      channel_ = AlignedBuffer<float>::Zeroed(static_cast<size_t>(num_panels_ * panel));
    }
    if (!source.weight.zero_points.empty()) zeros_ = AlignedBuffer<uint8_t>::Zeroed(per_group);
    pool->ParallelFor(num_panels_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * panel; row < std::min(end * panel, desc.n); ++row) {
        PackCodes(source, row);
        PackScales(source, row);
      }
    });
  }
  size_t size_bytes() const override {
    return codes_.size_bytes() + integers_.size_bytes() + integer_offset_.size_bytes() +
           zeros_.size_bytes() + float_scales_.size_bytes() + channel_.size_bytes();
  }
  void Multiply(const GemmArgs& args, ThreadPool* pool) const override;

 private:
  void PackCodes(const Int4Source& source, int64_t row);
  void PackScales(const Int4Source& source, int64_t row);
  int64_t GroupBegin(int64_t g) const { return g * group_; }
  int64_t GroupLength(int64_t g) const { return std::min(group_, desc_.k - g * group_); }
  AlignedBuffer<int8_t> PadRows(const GemmArgs& args) const;
  AlignedBuffer<int8_t> TileRows(const GemmArgs& args, ThreadPool* pool) const;
  AlignedBuffer<int32_t> SumGroups(const GemmArgs& args, int64_t rows, ThreadPool* pool) const;
  void MultiplyOnTiles(const GemmArgs& args, ThreadPool* pool) const;

  const Int4Kernels& kernels_;
  int64_t num_panels_ = 0;
  int64_t group_ = 0;  // input channels per packed group
  int64_t num_groups_ = 0;
  int64_t packed_group_ = 0;  // the same with padding to a multiple of 8
  int64_t packed_last_group_ = 0;
  int64_t packed_k_ = 0;
  AlignedBuffer<uint8_t> codes_;           // [num_panels, packed_k / 8, panel, 4]
  AlignedBuffer<uint8_t> integers_;        // [num_panels, num_groups, panel] S - offset
  AlignedBuffer<int32_t> integer_offset_;  // [num_panels, panel]
  AlignedBuffer<uint8_t> zeros_;           // [num_panels, num_groups, panel], or empty
  AlignedBuffer<float> float_scales_;      // [num_panels, num_groups, panel]
  AlignedBuffer<float> channel_;           // [num_panels, panel]
};

void Int4Panels::PackCodes(const Int4Source& source, int64_t row) {
  const int64_t panel = kernels_.panel;
  uint8_t* out = codes_.data() + row / panel * (packed_k_ * panel / 2);
  const int64_t column = row % panel;
  for (int64_t k = 0; k < desc_.k; ++k) {
    const int64_t packed_k = k / group_ * packed_group_ + k % group_;
    const int64_t at = (packed_k / 8 * panel + column) * 4 + packed_k % 4;
    const int shift = packed_k % 8 < 4 ? 0 : 4;
    out[at] = static_cast<uint8_t>(out[at] | (source.weight.Code(row, k) << shift));
  }
}

void Int4Panels::PackScales(const Int4Source& source, int64_t row) {
  const Int4Weight& weight = source.weight;
  const int64_t panel = kernels_.panel;
  const int64_t source_groups = weight.num_groups();
  int32_t offset = 0;
  if (!source.integers.empty()) {
    const auto first = source.integers.begin() + row * source_groups;
    if (std::any_of(first, first + source_groups, [](int16_t s) { return s < 0; })) offset = -128;
    integer_offset_[static_cast<size_t>(row)] = offset;
    channel_[static_cast<size_t>(row)] = source.channel[static_cast<size_t>(row)];
  }
  for (int64_t g = 0; g < num_groups_; ++g) {
    const int64_t k = g * group_;
    const auto from = static_cast<size_t>(row * source_groups + k / weight.group_size);
    const auto to = static_cast<size_t>((row / panel * num_groups_ + g) * panel + row % panel);
    if (source.integers.empty()) {
      float_scales_[to] = weight.scales[from];
    } else {
      integers_[to] = static_cast<uint8_t>(source.integers[from] - offset);
    }
    if (!zeros_.empty()) zeros_[to] = static_cast<uint8_t>(weight.Zero(row, k));
  }
}

// Rows with zeros between groups, as the packed codes have them. Only shapes whose k or groups are
// no multiple of 8 come here.
AlignedBuffer<int8_t> Int4Panels::PadRows(const GemmArgs& args) const {
  auto padded = AlignedBuffer<int8_t>::Zeroed(static_cast<size_t>(args.m * packed_k_));
  for (int64_t m = 0; m < args.m; ++m) {
    const int8_t* from = args.a8.values + m * args.a8.stride;
    int8_t* to = padded.data() + m * packed_k_;
    for (int64_t g = 0; g < num_groups_; ++g) {
      std::copy_n(from + GroupBegin(g), GroupLength(g), to + g * packed_group_);
    }
  }
  return padded;
}

// [tiles, packed_k / 4, tile_rows, 4] with zeros where rows or groups end. Rows of a matrix with a
// large power of two as stride would meet in the same cache sets, and a group of one row is too
// short for the prefetcher; a tile is read front to back by every panel.
AlignedBuffer<int8_t> Int4Panels::TileRows(const GemmArgs& args, ThreadPool* pool) const {
  const int64_t tile_rows = kernels_.tile_rows;
  const int64_t num_tiles = CeilDiv(args.m, tile_rows);
  AlignedBuffer<int8_t> tiled(static_cast<size_t>(num_tiles * tile_rows * packed_k_));
  pool->ParallelFor(num_tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      int8_t* out = tiled.data() + tile * tile_rows * packed_k_;
      const int64_t rows = std::min(tile_rows, args.m - tile * tile_rows);
      if (rows < tile_rows || packed_k_ != desc_.k) {
        std::fill_n(out, tile_rows * packed_k_, int8_t{0});
      }
      for (int64_t r = 0; r < rows; ++r) {
        const int8_t* row = args.a8.values + (tile * tile_rows + r) * args.a8.stride;
        for (int64_t g = 0; g < num_groups_; ++g) {
          const int8_t* from = row + GroupBegin(g);
          int8_t* to = out + g * packed_group_ * tile_rows + r * 4;
          const int64_t length = GroupLength(g);
          int64_t k = 0;
          for (; k + 4 <= length; k += 4) std::memcpy(to + k * tile_rows, from + k, 4);
          for (; k < length; ++k) to[k / 4 * 4 * tile_rows + k % 4] = from[k];
        }
      }
    }
  });
  return tiled;
}

// [rows, num_groups]; zeros for rows past m.
AlignedBuffer<int32_t> Int4Panels::SumGroups(const GemmArgs& args, int64_t rows,
                                             ThreadPool* pool) const {
  auto sums = AlignedBuffer<int32_t>::Zeroed(static_cast<size_t>(rows * num_groups_));
  pool->ParallelFor(args.m, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t g = 0; g < num_groups_; ++g) {
        const int8_t* from = args.a8.values + row * args.a8.stride + GroupBegin(g);
        const int64_t length = GroupLength(g);
        int32_t sum = 0;
        for (int64_t k = 0; k < length; ++k) sum += from[k];
        sums[static_cast<size_t>(row * num_groups_ + g)] = sum;
      }
    }
  });
  return sums;
}

void Int4Panels::MultiplyOnTiles(const GemmArgs& args, ThreadPool* pool) const {
  const auto at = [](const auto& buffer) { return buffer.empty() ? nullptr : buffer.data(); };
  // The float form scales each group's sum: it must not share a tile step with the next group.
  const bool whole_steps = desc_.scale_form == ScaleForm::kFloat;
  const int64_t group = whole_steps ? RoundUp(packed_group_, kAmxRowBytes) : packed_group_;
  const int64_t k = (num_groups_ - 1) * group + packed_last_group_;
  const AmxWeight weight = {.n = desc_.n,
                            .k = desc_.k,
                            .block = {.num_steps = CeilDiv(k, kAmxRowBytes),
                                      .int4 = {.codes = codes_.data(),
                                               .integers = at(integers_),
                                               .integer_offset = at(integer_offset_),
                                               .zeros = at(zeros_),
                                               .float_scales = at(float_scales_),
                                               .packed_k = packed_k_,
                                               .group = packed_group_,
                                               .num_groups = num_groups_},
                                      .channel = at(channel_)},
                            .multiply = kernels_.on_tiles};
  MultiplyAmxInt8(weight, {.group = group_, .packed_group = group, .num_groups = num_groups_}, args,
                  pool);
}

void Int4Panels::Multiply(const GemmArgs& args, ThreadPool* pool) const {
  const bool few = args.m <= kernels_.max_few_rows;
  if (!few && kernels_.on_tiles != nullptr) return MultiplyOnTiles(args, pool);
  const int64_t unit_rows = few ? 1 : kernels_.tile_rows;
  const int8_t* a = args.a8.values;
  int64_t a_stride = args.a8.stride;
  AlignedBuffer<int8_t> arranged;
  if (!few || packed_k_ != desc_.k) {
    arranged = few ? PadRows(args) : TileRows(args, pool);
    a = arranged.data();
    a_stride = packed_k_;
  }
  AlignedBuffer<int32_t> group_sums;
  if (few || kernels_.many_rows_uses_groups) {
    group_sums = SumGroups(args, RoundUp(args.m, unit_rows), pool);
  }
  const int64_t panel = kernels_.panel;
  const auto at = [](const auto& buffer, int64_t offset) {
    return buffer.empty() ? nullptr : buffer.data() + offset;
  };
  ForBlocks(args.m, unit_rows, num_panels_, pool, [&](int64_t p, int64_t row, int64_t rows) {
    const Int4Block block = {
        .codes = codes_.data() + p * (packed_k_ * panel / 2),
        .integers = at(integers_, p * num_groups_ * panel),
        .integer_offset = at(integer_offset_, p * panel),
        .zeros = at(zeros_, p * num_groups_ * panel),
        .float_scales = at(float_scales_, p * num_groups_ * panel),
        .channel = at(channel_, p * panel),
        .num_groups = num_groups_,
        .group = packed_group_,
        .last_group = packed_last_group_,
        .columns = std::min(panel, desc_.n - p * panel),
        .bias = args.bias == nullptr ? nullptr : args.bias + p * panel,
        .a = a + row * a_stride,
        .a_stride = a_stride,
        .a_scales = args.a8.scales + row,
        .a_sums = args.a8.sums + row,
        .group_sums = at(group_sums, row * num_groups_),
        .rows = rows,
        .d = args.d + row * args.d_stride + p * panel,
        .d_stride = args.d_stride,
    };
    (few ? kernels_.few_rows : kernels_.many_rows)(block);
  });
}

}  // namespace

std::unique_ptr<GemmWeight> PackDensePanels(const GemmVariant& variant, const GemmDesc& desc,
                                            const DenseSource& source, ThreadPool* pool) {
  return std::make_unique<DensePanels>(variant, desc, source, pool);
}

std::unique_ptr<GemmWeight> PackInt4Panels(const GemmVariant& variant, const GemmDesc& desc,
                                           const Int4Source& source, ThreadPool* pool) {
  return std::make_unique<Int4Panels>(variant, desc, source, pool);
}

}  // namespace nibble::kernels
