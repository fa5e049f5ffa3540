// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// 8-bit weights in panels.

#include <algorithm>

#include "base/aligned_buffer.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels {
namespace {

class Int8Panels final : public IntegerPanels {
 public:
  Int8Panels(const GemmVariant& variant, const GemmDesc& desc, const Int8Weight& source,
             ThreadPool* pool)
      : IntegerPanels(variant, desc, variant.int8_kernels->panel,
                      {.groups = {.k = desc.k, .group = desc.k, .step = kInt8StepK},
                       .group_factor = 0,
                       .max_tile_rows = variant.int8_kernels->max_tile_rows}),
        kernels_(*variant.int8_kernels),
        packed_k_(layout_.groups.packed_k()) {
    const int64_t panel = panel_;
    const int64_t num_panels = CeilDiv(desc.n, panel);
    const auto channels = static_cast<size_t>(num_panels * panel);
    weights_ = AlignedBuffer<uint8_t>::ZeroPages(channels * static_cast<size_t>(packed_k_));
    channel_ = AlignedBuffer<float>::ZeroPages(channels);
    pool->ParallelFor(num_panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * panel; row < std::min(end * panel, desc.n); ++row) {
        PackRow(source, row);
      }
    });
  }
  size_t size_bytes() const override { return weights_.size_bytes() + channel_.size_bytes(); }

  void MultiplyPanel(int64_t panel, const RowBlock& rows) const override {
    const int64_t channels = panel * panel_;
    kernels_.multiply({.weights = weights_.data() + channels * packed_k_,
                       .channel = channel_.data() + channels,
                       .rows = rows});
  }

 private:
  // What pads k meets activations of 0.
  void PackRow(const Int8Weight& source, int64_t row) {
    const int64_t panel = panel_;
    const int offset = kernels_.offset_weights ? 128 : 0;
    uint8_t* out = weights_.data() + row / panel * panel * packed_k_ + row % panel * 4;
    const int8_t* codes = source.codes.data() + row * desc_.k;
    for (int64_t k = 0; k < desc_.k; ++k) {
      out[k / 4 * panel * 4 + k % 4] = static_cast<uint8_t>(codes[k] + offset);
    }
    channel_[static_cast<size_t>(row)] = source.scales[static_cast<size_t>(row)];
  }

  const Int8Kernels& kernels_;
  const int64_t packed_k_;
  AlignedBuffer<uint8_t> weights_;  // [num_panels, packed_k / 4, panel, 4]
  AlignedBuffer<float> channel_;    // [num_panels, panel]
};

}  // namespace

std::unique_ptr<GemmWeight> PackInt8Panels(const GemmVariant& variant, const GemmDesc& desc,
                                           const Int8Weight& source, ThreadPool* pool) {
  return std::make_unique<Int8Panels>(variant, desc, source, pool);
}

}  // namespace nibble::kernels
