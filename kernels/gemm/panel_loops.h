// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What weights in panels are to the loops around their kernels: MultiplyIntegerPanels, which brings
// rows of activations into tiles, and MultiplyFloatPanels, which reads them where they are.
#pragma once

#include <cstdint>

#include "kernels/gemm/gemm_kernels.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// The packed k of a weight: groups of `group` values, padded to multiples of `step`.
struct PackedGroups {
  int64_t k;
  int64_t group;
  int64_t step;
  int64_t num_groups() const { return CeilDiv(k, group); }
  int64_t packed_group() const { return RoundUp(group, step); }
  int64_t packed_last_group() const { return RoundUp(k - (num_groups() - 1) * group, step); }
  int64_t packed_k() const { return (num_groups() - 1) * packed_group() + packed_last_group(); }
  bool operator==(const PackedGroups&) const = default;
};

// How a weight wants its rows.
struct RowLayout {
  PackedGroups groups;
  int32_t group_factor;   // of RowBlock.group_starts; 0: none
  int64_t max_tile_rows;  // most rows of a tile
  bool operator==(const RowLayout&) const = default;
};

// Weights that read int8 activations: W4A8, W8A8.
class IntegerPanels : public GemmWeight {
 public:
  IntegerPanels(const GemmVariant& variant, const GemmDesc& desc, int64_t panel,
                const RowLayout& layout)
      : GemmWeight(GemmLoops::kIntegerPanels, variant, desc), panel_(panel), layout_(layout) {}
  int64_t panel() const { return panel_; }  // output channels per panel
  const RowLayout& row_layout() const { return layout_; }
  // RowBlock.bias, d and columns are those of the panel.
  virtual void MultiplyPanel(int64_t panel, const RowBlock& rows) const = 0;

 protected:
  const int64_t panel_;
  const RowLayout layout_;
};

// Weights that read float activations: dense, W4A16.
class FloatPanels : public GemmWeight {
 public:
  FloatPanels(const GemmVariant& variant, const GemmDesc& desc, const DenseKernels& kernels)
      : GemmWeight(GemmLoops::kFloatPanels, variant, desc), kernels_(kernels) {}
  const DenseKernels& kernels() const { return kernels_; }
  // A block with what it has of the weights.
  virtual DenseBlock Panel(int64_t panel) const = 0;

 protected:
  const DenseKernels& kernels_;
};

}  // namespace nibble::kernels
