// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Grouped GEMM: D = A * B^T where consecutive rows of D each have a B of their own, the expert's
// that they belong to. The rows of A are gathered: several rows of D may read the same one.
//
//   group g has rows offsets[g] .. offsets[g + 1] - 1 of D;
//   row i of D is row a_rows[i] of A (null: row i) times the weights of its group
//
// A group without rows costs nothing: its weights are not read. Bits are those of kernels::Run with
// the same weight and row, so rows are batch invariant here too.
#pragma once

#include <cstdint>
#include <span>

#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"

namespace nibble::kernels {

// A packed weight of a group. Checkpoints may quantize the experts of a layer, or gate and up of
// one, in different ways, so a group may have several, side by side in D.
struct GroupWeight {
  const PackedWeight* weight = nullptr;
  int32_t group = 0;
  int64_t column = 0;  // of D, where its output channels begin
};

struct GroupedGemmArgs {
  int64_t num_groups = 0;
  const int32_t* offsets = nullptr;  // [num_groups + 1], from 0, rising
  const int32_t* a_rows = nullptr;   // [offsets[num_groups]] or null
  const float* a = nullptr;          // read by dense and W4A16 weights: [rows, a_stride]
  int64_t a_stride = 0;
  QuantizedRows a8;    // read by W4A8 and W8A8 weights
  float* d = nullptr;  // [offsets[num_groups], d_stride]
  int64_t d_stride = 0;
};

// REQUIRES: as Run, for every weight; weights of one k. No bias: no expert has one. Weights of one
// group share the rows brought into tiles when they follow each other. Scratch memory as Run.
void RunGrouped(std::span<const GroupWeight> weights, const GroupedGemmArgs& args,
                ThreadPool* pool);

}  // namespace nibble::kernels
