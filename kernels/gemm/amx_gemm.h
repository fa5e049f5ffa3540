// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// AMX: arranges activations into tiles and hands blocks of rows and panels to the kernels of
// amx_kernels.h. 4-bit weights stay in the panels of PackInt4Panels, which the AVX-512 kernels read
// too.
#pragma once

#include <cstdint>

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

// Weights that are multiplied on tiles.
class TileWeight : public GemmWeight {
 public:
  TileWeight(const GemmVariant& variant, const GemmDesc& desc,
             void (*multiply)(const AmxBlock& block))
      : GemmWeight(GemmLoops::kTiles, variant, desc), multiply_(multiply) {}
  void Multiply(const AmxBlock& block) const { multiply_(block); }
  // What a block has of the weights, for the panels from 0 on.
  virtual AmxBlock Block() const = 0;
  // Rows [first, first + rows) of the job, 16 at most, to [num_steps, 16, 64 bytes], zeros where
  // rows or k end.
  virtual void Arrange(const GemmJob& job, int64_t first, int64_t rows, uint8_t* tile) const = 0;

 private:
  void (*const multiply_)(const AmxBlock& block);
};

// Arrange for int8 rows. A group starts a new step when packed_group is a multiple of a step.
void ArrangeInt8Tile(const AmxGroups& groups, int64_t num_steps, const GemmJob& job, int64_t first,
                     int64_t rows, uint8_t* tile);

// How many rows of a job are arranged and multiplied with all panels before the next: all that take
// at most 16 MiB, but a whole block (512 rows) always. A multiple of two tiles.
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
