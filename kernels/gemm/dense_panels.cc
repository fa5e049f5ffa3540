// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Dense and W4A16 weights in panels.

#include <algorithm>

#include "base/aligned_buffer.h"
#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels {
namespace {

class DensePanels final : public FloatPanels {
 public:
  DensePanels(const GemmVariant& variant, const GemmDesc& desc, const DenseSource& source,
              ThreadPool* pool)
      : FloatPanels(variant, desc, *variant.dense_kernels),
        num_panels_(CeilDiv(desc.n, kernels_.panel)),
        panel_bytes_(desc.k * kernels_.panel * static_cast<int64_t>(SizeOf(desc.storage))),
        elements_(
            AlignedBuffer<uint8_t>::ZeroPages(static_cast<size_t>(num_panels_ * panel_bytes_))) {
    pool->ParallelFor(num_panels_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) PackPanel(source, panel);
    });
  }
  size_t size_bytes() const override { return elements_.size(); }

  DenseBlock Panel(int64_t panel) const override {
    return {.weights = elements_.data() + panel * panel_bytes_};
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

  const int64_t num_panels_;
  const int64_t panel_bytes_;
  AlignedBuffer<uint8_t> elements_;  // [num_panels, k, panel] of desc.storage
};

class Int4FloatPanels final : public FloatPanels {
 public:
  Int4FloatPanels(const GemmVariant& variant, const GemmDesc& desc, const Int4Weight& weight,
                  ThreadPool* pool)
      : FloatPanels(variant, desc, *variant.dense_kernels),
        num_panels_(CeilDiv(desc.n, kernels_.panel)),
        panel_words_(CeilDiv(desc.k, 8) * kernels_.panel),
        panel_scales_(weight.num_groups() * kernels_.panel),
        codes_(AlignedBuffer<uint32_t>::ZeroPages(static_cast<size_t>(num_panels_ * panel_words_))),
        scales_(AlignedBuffer<float>::ZeroPages(static_cast<size_t>(num_panels_ * panel_scales_))) {
    if (!weight.zero_points.empty()) zeros_ = AlignedBuffer<uint8_t>::ZeroPages(scales_.size());
    pool->ParallelFor(num_panels_, 1, [&](int64_t begin, int64_t end) {
      const int64_t last = std::min(end * kernels_.panel, desc.n);
      for (int64_t n = begin * kernels_.panel; n < last; ++n) PackChannel(weight, n);
    });
  }
  size_t size_bytes() const override {
    return codes_.size_bytes() + scales_.size_bytes() + zeros_.size_bytes();
  }

  DenseBlock Panel(int64_t panel) const override {
    const int64_t scales = panel * panel_scales_;
    return {.weights = codes_.data() + panel * panel_words_,
            .scales = scales_.data() + scales,
            .zeros = zeros_.empty() ? nullptr : zeros_.data() + scales,
            .group = desc_.group_size};
  }

 private:
  void PackChannel(const Int4Weight& weight, int64_t n) {
    const int64_t panel = n / kernels_.panel;
    const int64_t column = n % kernels_.panel;
    uint32_t* words = codes_.data() + panel * panel_words_ + column;
    for (int64_t k = 0; k < desc_.k; ++k) {
      words[k / 8 * kernels_.panel] |= static_cast<uint32_t>(weight.Code(n, k)) << (k % 8 * 4);
    }
    for (int64_t g = 0; g < weight.num_groups(); ++g) {
      const auto from = static_cast<size_t>(n * weight.num_groups() + g);
      const auto to = static_cast<size_t>(panel * panel_scales_ + g * kernels_.panel + column);
      scales_[to] = weight.scales[from];
      if (!zeros_.empty()) zeros_[to] = weight.zero_points[from];
    }
  }

  const int64_t num_panels_;
  const int64_t panel_words_;
  const int64_t panel_scales_;
  AlignedBuffer<uint32_t> codes_;  // [num_panels, ceil(k / 8), panel], the first of 8 k lowest
  AlignedBuffer<float> scales_;    // [num_panels, num_groups, panel]
  AlignedBuffer<uint8_t> zeros_;   // the same, or empty: 8 everywhere
};

}  // namespace

std::unique_ptr<GemmWeight> PackInt4FloatPanels(const GemmVariant& variant, const GemmDesc& desc,
                                                const Int4Source& source, ThreadPool* pool) {
  return std::make_unique<Int4FloatPanels>(variant, desc, source.weight, pool);
}

std::unique_ptr<GemmWeight> PackDensePanels(const GemmVariant& variant, const GemmDesc& desc,
                                            const DenseSource& source, ThreadPool* pool) {
  return std::make_unique<DensePanels>(variant, desc, source, pool);
}

}  // namespace nibble::kernels
