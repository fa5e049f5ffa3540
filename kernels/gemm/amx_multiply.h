// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the AMX kernels share: tiles of rows times a stretch of a panel, the loops around it and the
// way from int32 sums to outputs. Included by *_amx.cc only. An unnamed namespace, because no
// symbol compiled for AMX may serve other CPUs.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/amx_tile.h"
#include "kernels/device/math_avx512.h"
#include "kernels/gemm/amx_kernels.h"
#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels::amx {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = kAmxPanel / kLanes;

// C is 2 x 2 tiles, so that every tile loaded is used twice: 4 loads (1 KiB each) for 4 products of
// 16 cycles.
enum Tile { kC00, kC01, kC10, kC11, kA0, kA1, kB0, kB1 };

struct SignedBytes {
  template <int kC, int kA, int kB>
  static inline void Dot() {
    DotSigned<kC, kA, kB>();
  }
};
struct Bf16Pairs {
  template <int kC, int kA, int kB>
  static inline void Dot() {
    DotBf16<kC, kA, kB>();
  }
};

// Weights of one panel over some steps: [num_steps, 16, panel, 4 bytes].
struct Stretch {
  const uint8_t* weights;
  int64_t begin;  // steps
  int64_t num_steps;
  // What the next stretch will read from memory, fetched while this one is multiplied.
  const uint8_t* next;
  int64_t next_bytes;
};

inline int64_t NumRowTiles(const AmxBlock& block) {
  return (block.rows + kAmxTileRows - 1) / kAmxTileRows;
}

// kRowTiles (1 or 2) times 16 rows of activations from `a` on, times a stretch, onto C in the tile
// registers.
template <typename Kind, int kRowTiles>
inline void DotSteps(const AmxBlock& block, const uint8_t* a, const Stretch& stretch) {
  const uint8_t* b = stretch.weights;
  const uint8_t* a1 = a + block.num_steps * kAmxTileBytes;
  for (int64_t step = 0; step < stretch.num_steps; ++step) {
    LoadTile<kA0>(a, kAmxRowBytes);
    LoadTile<kB0>(b, kAmxPanelRowBytes);
    Kind::template Dot<kC00, kA0, kB0>();
    LoadTile<kB1>(b + kAmxPanelRowBytes / 2, kAmxPanelRowBytes);
    Kind::template Dot<kC01, kA0, kB1>();
    if constexpr (kRowTiles == 2) {
      LoadTile<kA1>(a1, kAmxRowBytes);
      Kind::template Dot<kC10, kA1, kB0>();
      Kind::template Dot<kC11, kA1, kB1>();
      a1 += kAmxTileBytes;
    }
    a += kAmxTileBytes;
    b += kAmxPanelStepBytes;
  }
}

template <int kRowTiles>
inline void ZeroC() {
  ZeroTile<kC00>();
  ZeroTile<kC01>();
  if constexpr (kRowTiles == 2) {
    ZeroTile<kC10>();
    ZeroTile<kC11>();
  }
}

// C from or to rows of a panel's width.
template <int kRowTiles>
inline void LoadC(const int32_t* sums) {
  LoadTile<kC00>(sums, kAmxPanelRowBytes);
  LoadTile<kC01>(sums + kLanes, kAmxPanelRowBytes);
  if constexpr (kRowTiles == 2) {
    LoadTile<kC10>(sums + kAmxTileRows * kAmxPanel, kAmxPanelRowBytes);
    LoadTile<kC11>(sums + kAmxTileRows * kAmxPanel + kLanes, kAmxPanelRowBytes);
  }
}
template <int kRowTiles>
inline void StoreC(int32_t* sums) {
  StoreTile<kC00>(sums, kAmxPanelRowBytes);
  StoreTile<kC01>(sums + kLanes, kAmxPanelRowBytes);
  if constexpr (kRowTiles == 2) {
    StoreTile<kC10>(sums + kAmxTileRows * kAmxPanel, kAmxPanelRowBytes);
    StoreTile<kC11>(sums + kAmxTileRows * kAmxPanel + kLanes, kAmxPanelRowBytes);
  }
}

// Calls body.Run<row tiles>(first row tile) over all rows, and fetches `next` on the way.
template <typename Body>
inline void ForRowTiles(const AmxBlock& block, const Stretch& stretch, const Body& body) {
  const int64_t row_tiles = NumRowTiles(block);
  const int64_t bytes = (stretch.next_bytes + row_tiles - 1) / row_tiles * 2;
  const uint8_t* next = stretch.next;
  const uint8_t* next_end = stretch.next + stretch.next_bytes;
  for (int64_t tile = 0; tile < row_tiles; tile += 2) {
    const uint8_t* end = next_end - next > bytes ? next + bytes : next_end;
    for (; next < end; next += 64) _mm_prefetch(next, _MM_HINT_T1);
    if (tile + 1 < row_tiles) {
      body.template Run<2>(tile);
    } else {
      body.template Run<1>(tile);
    }
  }
}

// Sums over the k of all stretches: in the tile registers within one, in memory between two.
template <typename Kind>
struct Accumulate {
  const AmxBlock& block;
  const Stretch& stretch;
  int32_t* sums;  // of the panel
  bool first;

  template <int kRowTiles>
  inline void Run(int64_t tile) const {
    int32_t* at = sums + tile * kAmxTileRows * kAmxPanel;
    if (first) {
      ZeroC<kRowTiles>();
    } else {
      LoadC<kRowTiles>(at);
    }
    DotSteps<Kind, kRowTiles>(
        block, block.a + (tile * block.num_steps + stretch.begin) * kAmxTileBytes, stretch);
    StoreC<kRowTiles>(at);
  }
};

inline int32_t* PanelSums(const AmxBlock& block, int64_t panel) {
  return block.sums + panel * NumRowTiles(block) * kAmxTileRows * kAmxPanel;
}

// Passes of `form` over k add up to sums; those of earlier passes count 2^kPassShift times.
// form.Weights(pass, panel, &stretch) brings the weights of a stretch into the layout of Stretch.
template <typename Form>
inline void Multiply(const AmxBlock& block, const Form& form) {
  for (int pass = 0; pass < Form::kPasses; ++pass) {
    for (int64_t begin = 0; begin < block.num_steps; begin += kAmxStretchSteps) {
      const int64_t left = block.num_steps - begin;
      for (int64_t panel = 0; panel < block.num_panels; ++panel) {
        int32_t* sums = PanelSums(block, panel);
        if (pass > 0 && begin == 0) {
          for (int64_t i = 0; i < NumRowTiles(block) * kAmxTileRows * kAmxPanel; i += kLanes) {
            const __m512i sum = _mm512_load_si512(sums + i);
            _mm512_store_si512(sums + i, _mm512_slli_epi32(sum, Form::kPassShift));
          }
        }
        Stretch stretch = {.begin = begin,
                           .num_steps = left < kAmxStretchSteps ? left : kAmxStretchSteps};
        form.Weights(pass, panel, &stretch);
        ForRowTiles(block, stretch,
                    Accumulate<typename Form::Kind>{block, stretch, sums, pass == 0 && begin == 0});
      }
    }
  }
}

// Weights that lie in memory as the tiles want them.
template <typename DotKind>
struct StoredForm {
  using Kind = DotKind;
  static constexpr int kPasses = 1;
  static constexpr int kPassShift = 0;
  const AmxBlock& block;

  inline const uint8_t* At(int64_t panel, int64_t step) const {
    return block.weights + (panel * block.num_steps + step) * kAmxPanelStepBytes;
  }
  inline void Weights(int /*pass*/, int64_t panel, Stretch* stretch) const {
    const bool last = panel + 1 == block.num_panels;
    stretch->weights = At(panel, stretch->begin);
    stretch->next =
        last ? At(0, stretch->begin + stretch->num_steps) : At(panel + 1, stretch->begin);
    stretch->next_bytes = stretch->num_steps * kAmxPanelStepBytes;
  }
};

// ---- From sums to outputs

// d = value + bias for the columns that exist, from `column` on.
inline void StoreOutputs(const AmxBlock& block, int64_t row, int64_t column, __m512 value) {
  const __mmask16 mask = avx512vnni::FirstLanes(block.columns - column);
  if (mask == 0) return;
  if (block.bias != nullptr) {
    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, block.bias + column));
  }
  _mm512_mask_storeu_ps(block.d + row * block.d_stride + column, mask, value);
}

// Calls finish(row, column, sums of 16 columns).
template <typename Finish>
inline void ForSums(const AmxBlock& block, const Finish& finish) {
  for (int64_t panel = 0; panel < block.num_panels; ++panel) {
    const int32_t* sums = PanelSums(block, panel);
    for (int64_t row = 0; row < block.rows; ++row) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        finish(row, panel * kAmxPanel + v * kLanes,
               _mm512_load_si512(sums + row * kAmxPanel + v * kLanes));
      }
    }
  }
}

// float(sum) * (s_a * c[n]), each step rounded once.
inline void StoreScaled(const AmxBlock& block, int64_t row, int64_t column, __m512i sum) {
  const __m512 scale =
      _mm512_mul_ps(_mm512_set1_ps(block.a_scales[row]), _mm512_loadu_ps(block.channel + column));
  StoreOutputs(block, row, column, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
}

}  // namespace
}  // namespace nibble::kernels::amx
