// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// 4-bit weights in panels.

#include <algorithm>

#include "base/aligned_buffer.h"
#include "kernels/gemm/amx_gemm.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kBytesPerStep = kInt4StepK / 2;  // of one output channel

class Int4Panels final : public IntegerPanels {
 public:
  Int4Panels(const GemmVariant& variant, const GemmDesc& desc, const Int4Source& source,
             ThreadPool* pool)
      // Groups longer than a kernel takes are cut; CheckW4A8 saw to it that the cuts meet their
      // ends.
      : IntegerPanels(variant, desc, variant.int4_kernels->panel,
                      {.groups = {.k = desc.k,
                                  .group = std::min({desc.group_size, desc.k, kMaxPackedGroup}),
                                  .step = kInt4StepK},
                       .group_factor = source.weight.zero_points.empty() ? -8 : -1,
                       .max_tile_rows = variant.int4_kernels->max_tile_rows}),
        kernels_(*variant.int4_kernels),
        num_groups_(layout_.groups.num_groups()),
        packed_k_(layout_.groups.packed_k()) {
    const int64_t panel = panel_;
    const int64_t num_panels = CeilDiv(desc.n, panel);
    const auto channels = static_cast<size_t>(num_panels * panel);
    const size_t per_group = channels * static_cast<size_t>(num_groups_);
    codes_ = AlignedBuffer<uint8_t>::ZeroPages(channels * static_cast<size_t>(packed_k_) / 2);
    if (desc.scale_form == ScaleForm::kFloat) {
      float_scales_ = AlignedBuffer<float>::ZeroPages(per_group);
    } else {
      integers_ = AlignedBuffer<uint8_t>::ZeroPages(per_group);
      integer_offset_ = AlignedBuffer<int32_t>::ZeroPages(channels);
      channel_ = AlignedBuffer<float>::ZeroPages(channels);
    }
    if (!source.weight.zero_points.empty()) zeros_ = AlignedBuffer<uint8_t>::ZeroPages(per_group);
    pool->ParallelFor(num_panels, 1, [&](int64_t begin, int64_t end) {
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
  void MultiplyPanel(int64_t panel, const RowBlock& rows) const override {
    kernels_.multiply(Block(panel, rows));
  }
  const PackedGroups& groups() const { return layout_.groups; }
  // What blocks of tiles have of the weights, but for the steps.
  AmxBlock TileBlock() const {
    const auto at = [](const auto& buffer) { return buffer.empty() ? nullptr : buffer.data(); };
    return {.int4 = {.codes = codes_.data(),
                     .integers = at(integers_),
                     .integer_offset = at(integer_offset_),
                     .zeros = at(zeros_),
                     .float_scales = at(float_scales_),
                     .packed_k = packed_k_,
                     .group = layout_.groups.packed_group(),
                     .num_groups = num_groups_},
            .channel = at(channel_)};
  }

 private:
  void PackCodes(const Int4Source& source, int64_t row);
  void PackScales(const Int4Source& source, int64_t row);
  Int4Block Block(int64_t panel, const RowBlock& rows) const {
    const auto at = [](const auto& buffer, int64_t offset) {
      return buffer.empty() ? nullptr : buffer.data() + offset;
    };
    const int64_t channels = panel * panel_;
    return {.codes = codes_.data() + channels * packed_k_ / 2,
            .integers = at(integers_, channels * num_groups_),
            .integer_offset = at(integer_offset_, channels),
            .zeros = at(zeros_, channels * num_groups_),
            .float_scales = at(float_scales_, channels * num_groups_),
            .channel = at(channel_, channels),
            .num_groups = num_groups_,
            .group = layout_.groups.packed_group(),
            .last_group = layout_.groups.packed_last_group(),
            .rows = rows};
  }

  const Int4Kernels& kernels_;
  const int64_t num_groups_;
  const int64_t packed_k_;
  AlignedBuffer<uint8_t> codes_;           // [num_panels, packed_k / 8, panel, 4]
  AlignedBuffer<uint8_t> integers_;        // [num_panels, num_groups, panel] S - offset
  AlignedBuffer<int32_t> integer_offset_;  // [num_panels, panel]
  AlignedBuffer<uint8_t> zeros_;           // [num_panels, num_groups, panel], or empty
  AlignedBuffer<float> float_scales_;      // [num_panels, num_groups, panel]
  AlignedBuffer<float> channel_;           // [num_panels, panel]
};

void Int4Panels::PackCodes(const Int4Source& source, int64_t row) {
  const int64_t panel = panel_;
  const int64_t group = layout_.groups.group;
  const int64_t packed_group = layout_.groups.packed_group();
  uint8_t* out =
      codes_.data() + row / panel * (packed_k_ * panel / 2) + row % panel * kBytesPerStep;
  int64_t k = 0;
  if (group == packed_group) {  // whole steps lie in the source as they do here
    const uint8_t* from = source.weight.codes.data() + row * source.weight.row_bytes();
    for (; k + kInt4StepK <= desc_.k; k += kInt4StepK) {
      uint8_t* to = out + k / kInt4StepK * panel * kBytesPerStep;
      // Each byte has two codes of k that follow each other.
      to[0] = static_cast<uint8_t>((from[0] & 15) | (from[2] << 4));
      to[1] = static_cast<uint8_t>((from[0] >> 4) | (from[2] & 0xf0));
      to[2] = static_cast<uint8_t>((from[1] & 15) | (from[3] << 4));
      to[3] = static_cast<uint8_t>((from[1] >> 4) | (from[3] & 0xf0));
      from += kBytesPerStep;
    }
  }
  for (; k < desc_.k; ++k) {
    const int64_t packed_k = k / group * packed_group + k % group;
    uint8_t* to = out + packed_k / kInt4StepK * panel * kBytesPerStep + packed_k % 4;
    const int shift = packed_k % kInt4StepK < 4 ? 0 : 4;
    *to = static_cast<uint8_t>(*to | (source.weight.Code(row, k) << shift));
  }
}

void Int4Panels::PackScales(const Int4Source& source, int64_t row) {
  const Int4Weight& weight = source.weight;
  const int64_t panel = panel_;
  const int64_t source_groups = weight.num_groups();
  int32_t offset = 0;
  if (!source.integers.empty()) {
    const auto first = source.integers.begin() + row * source_groups;
    if (std::any_of(first, first + source_groups, [](int16_t s) { return s < 0; })) offset = -128;
    integer_offset_[static_cast<size_t>(row)] = offset;
    channel_[static_cast<size_t>(row)] = source.channel[static_cast<size_t>(row)];
  }
  for (int64_t g = 0; g < num_groups_; ++g) {
    const int64_t k = g * layout_.groups.group;
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

// The same panels, multiplied on tiles; few rows are not.
class Int4Tiles final : public TileWeight {
 public:
  Int4Tiles(const GemmVariant& variant, const GemmDesc& desc, const Int4Source& source,
            ThreadPool* pool)
      : TileWeight(variant, desc, variant.int4_kernels->on_tiles),
        max_few_rows_(variant.int4_kernels->max_few_rows),
        panels_(variant, desc, source, pool) {
    const PackedGroups& groups = panels_.groups();
    // The float form scales each group's sum: it must not share a tile step with the next group.
    const bool whole_steps = desc.scale_form == ScaleForm::kFloat;
    groups_ = {.group = groups.group,
               .packed_group = whole_steps ? RoundUp(groups.packed_group(), kAmxRowBytes)
                                           : groups.packed_group(),
               .num_groups = groups.num_groups()};
    const int64_t k = (groups_.num_groups - 1) * groups_.packed_group + groups.packed_last_group();
    num_steps_ = CeilDiv(k, kAmxRowBytes);
  }
  size_t size_bytes() const override { return panels_.size_bytes(); }
  const GemmWeight& ForRows(int64_t rows) const override {
    if (rows <= max_few_rows_) return panels_;
    return *this;
  }
  AmxBlock Block() const override {
    AmxBlock block = panels_.TileBlock();
    block.num_steps = num_steps_;
    return block;
  }
  void Arrange(const GemmJob& job, int64_t first, int64_t rows, uint8_t* tile) const override {
    ArrangeInt8Tile(groups_, num_steps_, job, first, rows, tile);
  }

 private:
  const int64_t max_few_rows_;
  const Int4Panels panels_;
  AmxGroups groups_;
  int64_t num_steps_;
};

}  // namespace

std::unique_ptr<GemmWeight> PackInt4Panels(const GemmVariant& variant, const GemmDesc& desc,
                                           const Int4Source& source, ThreadPool* pool) {
  if (variant.int4_kernels->on_tiles != nullptr) {
    return std::make_unique<Int4Tiles>(variant, desc, source, pool);
  }
  return std::make_unique<Int4Panels>(variant, desc, source, pool);
}

}  // namespace nibble::kernels
