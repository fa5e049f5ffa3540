// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// AMX: arranges activations into tiles and hands blocks of rows and panels to the kernels of
// amx_kernels.h. 4-bit weights stay in the panels of PackInt4Panels, which the AVX-512 kernels read
// too.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/gemm/amx_kernels.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {

// How rows of int8 activations become the packed k of a weight: groups of `group` bytes, each at
// the next multiple of `packed_group`.
struct AmxGroups {
  int64_t group;
  int64_t packed_group;
  int64_t num_groups;
};

// A packed weight. `block` holds what its description of weights has, for the panels from 0 on.
struct AmxWeight {
  int64_t n;
  int64_t k;
  AmxBlock block;
  void (*multiply)(const AmxBlock& block);
};

// d = the product over groups of k bytes of args.a8. A group starts a new step when packed_group is
// a multiple of a step.
void MultiplyAmxInt8(const AmxWeight& weight, const AmxGroups& groups, const GemmArgs& args,
                     ThreadPool* pool);

// How many rows are arranged and multiplied with all panels before the next: all that take at most
// 16 MiB, but a whole block (512 rows) always. A multiple of two tiles.
int64_t AmxChunkRows(int64_t m, int64_t row_bytes);

// How the work of a chunk is cut: blocks of `rows` (a multiple of two tiles, but for the last)
// times `panels`.
struct AmxUnits {
  int64_t rows;
  int64_t panels;
};
AmxUnits ChooseAmxUnits(int64_t m, int64_t row_bytes, int64_t num_panels, int64_t num_threads);

// Weights in the layout of tiles (README.md), which all numbers of rows run on. Dense rows must see
// the same arithmetic always; and nothing is unpacked, so that few rows wait for memory anyway.
std::unique_ptr<GemmWeight> PackDenseAmx(const GemmVariant&, const GemmDesc&, const DenseSource&,
                                         ThreadPool*);
std::unique_ptr<GemmWeight> PackInt8Amx(const GemmVariant&, const GemmDesc&, const Int8Weight&,
                                        ThreadPool*);

}  // namespace nibble::kernels
