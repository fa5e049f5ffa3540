// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Dense weights in panels, and the loops over panels and blocks of rows.

#include <algorithm>

#include "base/aligned_buffer.h"
#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/gemm_kernels.h"
#include "kernels/gemm/gemm_variant.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kMaxRows = 192;  // of a block
// Splits [0, m) x [0, num_panels) over the threads; body(panel, first row, rows). Rows come in
// equal blocks of whole tiles; a block's panel of weights is read once.
template <typename Body>
void ForBlocks(int64_t m, int64_t tile_rows, int64_t num_panels, ThreadPool* pool,
               const Body& body) {
  const int64_t num_blocks = CeilDiv(m, kMaxRows / tile_rows * tile_rows);
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

}  // namespace

std::unique_ptr<GemmWeight> PackDensePanels(const GemmVariant& variant, const GemmDesc& desc,
                                            const DenseSource& source, ThreadPool* pool) {
  return std::make_unique<DensePanels>(variant, desc, source, pool);
}

}  // namespace nibble::kernels
