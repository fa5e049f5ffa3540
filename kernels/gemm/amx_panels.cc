// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Dense and W8A8 weights in the layout of tiles.

#include <algorithm>

#include "base/aligned_buffer.h"
#include "kernels/gemm/amx_gemm.h"
#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels {
namespace {

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

class DenseAmx final : public TileWeight {
 public:
  DenseAmx(const GemmVariant& variant, const GemmDesc& desc, const DenseSource& source,
           ThreadPool* pool)
      : TileWeight(variant, desc, amx::Bf16), panels_(desc, pool, [&](int64_t n, int64_t k) {
          return ToBFloat16(LoadElement(source.weights, source.storage, n * desc.k + k)).bits;
        }) {}
  size_t size_bytes() const override { return panels_.size_bytes(); }

  AmxBlock Block() const override { return panels_.Block(); }
  void Arrange(const GemmJob& job, int64_t first, int64_t rows, uint8_t* tile) const override {
    const bool gathered = job.a_rows != nullptr;
    amx::ArrangeBf16({.a = gathered ? job.args.a : job.args.a + first * job.args.a_stride,
                      .a_stride = job.args.a_stride,
                      .a_rows = gathered ? job.a_rows + first : nullptr,
                      .rows = rows,
                      .k = desc_.k,
                      .num_steps = panels_.num_steps(),
                      .out = tile});
  }

 private:
  const TilePanels<uint16_t> panels_;
};

class Int8Amx final : public TileWeight {
 public:
  Int8Amx(const GemmVariant& variant, const GemmDesc& desc, const Int8Weight& weight,
          ThreadPool* pool)
      : TileWeight(variant, desc, amx::Int8),
        panels_(desc, pool,
                [&](int64_t n, int64_t k) {
                  return weight.codes[static_cast<size_t>(n * desc.k + k)];
                }),
        channel_(AlignedBuffer<float>::ZeroPages(static_cast<size_t>(RoundUp(desc.n, kAmxPanel)))) {
    std::copy(weight.scales.begin(), weight.scales.end(), channel_.begin());
  }
  size_t size_bytes() const override { return panels_.size_bytes() + channel_.size_bytes(); }

  AmxBlock Block() const override {
    AmxBlock block = panels_.Block();
    block.channel = channel_.data();
    return block;
  }
  void Arrange(const GemmJob& job, int64_t first, int64_t rows, uint8_t* tile) const override {
    const AmxGroups one = {.group = desc_.k, .packed_group = desc_.k, .num_groups = 1};
    ArrangeInt8Tile(one, panels_.num_steps(), job, first, rows, tile);
  }

 private:
  const TilePanels<int8_t> panels_;
  AlignedBuffer<float> channel_;  // [n] and zeros to a whole panel
};

}  // namespace

std::unique_ptr<GemmWeight> PackDenseAmx(const GemmVariant& variant, const GemmDesc& desc,
                                         const DenseSource& source, ThreadPool* pool) {
  return std::make_unique<DenseAmx>(variant, desc, source, pool);
}

std::unique_ptr<GemmWeight> PackInt8Amx(const GemmVariant& variant, const GemmDesc& desc,
                                        const Int8Weight& weight, ThreadPool* pool) {
  return std::make_unique<Int8Amx>(variant, desc, weight, pool);
}

}  // namespace nibble::kernels
