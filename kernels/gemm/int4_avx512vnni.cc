// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W4A8 with vpdpbusd: 32-bit lane n gains the products of four unsigned bytes (weights of output
// channel n, four k) with four signed bytes (activations of the same k, the same in every lane).
// Wrapping arithmetic throughout: whole sums are proven to fit when packing.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels::avx512vnni {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = 2;  // a panel is 32 output channels
constexpr int kPanel = kVectors * kLanes;
constexpr int kStepBytes = kPanel * 4;  // packed codes of 8 k; unpacked bytes of 4 k
// 12 rows * 2 vectors = 24 accumulators; weights and activations take 3 more of the 32 registers.
constexpr int kTileRows = 12;

inline __mmask16 FirstLanes(int64_t count) {
  if (count <= 0) return 0;
  return static_cast<__mmask16>(count >= kLanes ? 0xffff : (1U << count) - 1U);
}

// The next four activations of a row, in every lane.
inline __m512i Broadcast4(const int8_t* a) {
  int32_t four = 0;
  __builtin_memcpy(&four, a, 4);
  return _mm512_set1_epi32(four);
}

inline __m512i LowHalves(__m512i codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
inline __m512i HighHalves(__m512i codes) {
  return _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(15));
}

inline __m512i LoadBytes(const uint8_t* bytes) {  // 16 bytes, one per lane
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Scales and zero points of group `g`, output channels [16 v, 16 v + 16).
inline __m512i LoadIntegers(const Int4Block& block, int64_t g, int v) {
  const int64_t at = g * kPanel + v * kLanes;
  return _mm512_add_epi32(LoadBytes(block.integers + at),
                          _mm512_loadu_si512(block.integer_offset + v * kLanes));
}
inline __m512i LoadZeros(const Int4Block& block, int64_t g, int v) {
  if (block.zeros == nullptr) return _mm512_set1_epi32(8);
  return LoadBytes(block.zeros + g * kPanel + v * kLanes);
}

inline int64_t GroupLength(const Int4Block& block, int64_t g) {
  return g + 1 < block.num_groups ? block.group : block.last_group;
}

// d = value + bias for the columns that exist.
inline void Store(const Int4Block& block, int64_t row, int v, __m512 value) {
  const __mmask16 mask = FirstLanes(block.columns - v * kLanes);
  if (mask == 0) return;
  if (block.bias != nullptr) {
    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, block.bias + v * kLanes));
  }
  _mm512_mask_storeu_ps(block.d + row * block.d_stride + v * kLanes, mask, value);
}

// float(acc) * (s_a * c[n])
inline __m512 ScaleSum(const Int4Block& block, int64_t row, int v, __m512i acc) {
  const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(block.a_scales[row]),
                                     _mm512_loadu_ps(block.channel + v * kLanes));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(acc), scale);
}

// How the exact sum of a group enters the sum of a row.
struct Integer {
  using Sum = __m512i;
  static inline Sum Zero() { return _mm512_setzero_si512(); }
  static inline Sum Load(const Int4Block& block, int64_t g, int v) {
    return LoadIntegers(block, g, v);
  }
  static inline Sum Add(Sum sum, __m512i partial, Sum scale) {
    return _mm512_add_epi32(sum, _mm512_mullo_epi32(partial, scale));
  }
  static inline Sum LoadSum(const int32_t* at) { return _mm512_load_si512(at); }
  static inline void StoreSum(int32_t* at, Sum sum) { _mm512_store_si512(at, sum); }
  static inline __m512 Finish(const Int4Block& block, int64_t row, int v, Sum sum) {
    return ScaleSum(block, row, v, sum);
  }
};
struct Float {
  using Sum = __m512;
  static inline Sum Zero() { return _mm512_setzero_ps(); }
  static inline Sum Load(const Int4Block& block, int64_t g, int v) {
    return _mm512_loadu_ps(block.float_scales + g * kPanel + v * kLanes);
  }
  static inline Sum Add(Sum sum, __m512i partial, Sum scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(partial), scale, sum);
  }
  static inline Sum LoadSum(const int32_t* at) {
    return _mm512_castsi512_ps(_mm512_load_si512(at));
  }
  static inline void StoreSum(int32_t* at, Sum sum) {
    _mm512_store_si512(at, _mm512_castps_si512(sum));
  }
  static inline __m512 Finish(const Int4Block& block, int64_t row, int /*v*/, Sum sum) {
    return _mm512_mul_ps(sum, _mm512_set1_ps(block.a_scales[row]));
  }
};

// ---- Few rows: bound by memory. Codes are unpacked in registers, scaled once per group.

template <typename Form, int kRows>
void FewRowsTile(const Int4Block& block, int64_t row) {
  // One or two rows alone would wait for the latency of their accumulators: two chains per sum.
  constexpr int kChains = kRows <= 2 ? 2 : 1;
  const int8_t* a = block.a + row * block.a_stride;
  const uint8_t* codes = block.codes;
  typename Form::Sum sums[kRows][kVectors];
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Form::Zero();
  }
  for (int64_t g = 0; g < block.num_groups; ++g) {
    __m512i partial[kRows][kVectors][kChains];
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        NIBBLE_UNROLL
        for (int c = 0; c < kChains; ++c) partial[r][v][c] = _mm512_setzero_si512();
      }
    }
    const int64_t length = GroupLength(block, g);
    for (int64_t k = 0; k < length; k += 8) {
      __m512i low[kVectors];
      __m512i high[kVectors];
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const __m512i packed = _mm512_loadu_si512(codes + v * 64);
        low[v] = LowHalves(packed);
        high[v] = HighHalves(packed);
      }
      codes += kStepBytes;
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512i x0 = Broadcast4(a + r * block.a_stride + k);
        const __m512i x1 = Broadcast4(a + r * block.a_stride + k + 4);
        NIBBLE_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          __m512i* p = partial[r][v];
          p[0] = _mm512_dpbusd_epi32(p[0], low[v], x0);
          p[kChains - 1] = _mm512_dpbusd_epi32(p[kChains - 1], high[v], x1);
        }
      }
    }
    a += length;
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto scale = Form::Load(block, g, v);
      const __m512i zero = LoadZeros(block, g, v);
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int32_t a_sum = block.group_sums[(row + r) * block.num_groups + g];
        __m512i p = partial[r][v][0];
        if (kChains == 2) p = _mm512_add_epi32(p, partial[r][v][kChains - 1]);
        p = _mm512_sub_epi32(p, _mm512_mullo_epi32(zero, _mm512_set1_epi32(a_sum)));
        sums[r][v] = Form::Add(sums[r][v], p, scale);
      }
    }
  }
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      Store(block, row + r, v, Form::Finish(block, row + r, v, sums[r][v]));
    }
  }
}

template <typename Form>
void FewRows(const Int4Block& block) {
  int64_t row = 0;
  for (; row + 6 <= block.rows; row += 6) FewRowsTile<Form, 6>(block, row);
  switch (block.rows - row) {
    case 5:
      FewRowsTile<Form, 5>(block, row);
      break;
    case 4:
      FewRowsTile<Form, 4>(block, row);
      break;
    case 3:
      FewRowsTile<Form, 3>(block, row);
      break;
    case 2:
      FewRowsTile<Form, 2>(block, row);
      break;
    case 1:
      FewRowsTile<Form, 1>(block, row);
      break;
    default:
      break;
  }
}

// ---- Many rows: bound by vpdpbusd. A stretch of k is unpacked once into cache, then read by all
// rows of the block; sums wait in `sums` between stretches.

constexpr int64_t kStretch = kMaxPackedGroup;
struct Scratch {
  alignas(64) uint8_t weights[kStretch / 4 * kStepBytes];  // [kStretch / 4, kPanel, 4]
  alignas(64) int32_t sums[kMaxBlockRows * kPanel];        // [rows, kPanel], or float bits
};

// Bytes (u - 8) * S + 128, in 0..248. S in 1..16: u * S + a with a = 128 - 8 S. S in -15..-1: the
// same with |S| and the complement of u, because (u - 8) * S = ((15 - u) - 7) * |S|, so a = 128 -
// 7 |S|. Two products in a 16-bit lane never carry into each other, so one 16-bit multiplication
// serves both.
struct Fold {
  __m512i complement;  // 15 in each byte where S is negative
  __m512i multiplier;  // |S| in each 16-bit half
  __m512i addend;      // a in each byte
  Fold(const Int4Block& block, int64_t g, int v) {
    const __m512i s = LoadIntegers(block, g, v);
    const __m512i negative = _mm512_srai_epi32(s, 31);
    const __m512i magnitude = _mm512_abs_epi32(s);
    complement = _mm512_and_si512(negative, _mm512_set1_epi8(15));
    multiplier = _mm512_or_si512(magnitude, _mm512_slli_epi32(magnitude, 16));
    // 8 S or 7 |S|, at most 128
    const __m512i zero =
        _mm512_sub_epi32(_mm512_slli_epi32(magnitude, 3), _mm512_and_si512(negative, magnitude));
    const __m512i zero2 = _mm512_or_si512(zero, _mm512_slli_epi32(zero, 8));
    addend = _mm512_sub_epi8(_mm512_set1_epi8(static_cast<char>(128)),
                             _mm512_or_si512(zero2, _mm512_slli_epi32(zero2, 16)));
  }
  inline __m512i operator()(__m512i codes) const {
    const __m512i u = _mm512_xor_si512(codes, complement);
    return _mm512_add_epi8(_mm512_mullo_epi16(u, multiplier), addend);
  }
};
struct Plain {
  Plain(const Int4Block&, int64_t, int) {}
  inline __m512i operator()(__m512i codes) const { return codes; }
};

// Unpacks `length` k of one group.
template <typename Transform>
void Unpack(const Int4Block& block, int64_t g, const uint8_t* codes, int64_t length, uint8_t* out) {
  NIBBLE_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const Transform transform(block, g, v);
    const uint8_t* from = codes + v * 64;
    uint8_t* to = out + v * 64;
    for (int64_t k = 0; k < length; k += 8) {
      const __m512i packed = _mm512_loadu_si512(from);
      _mm512_store_si512(to, transform(LowHalves(packed)));
      _mm512_store_si512(to + kStepBytes, transform(HighHalves(packed)));
      from += kStepBytes;
      to += 2 * kStepBytes;
    }
  }
}

// acc += unpacked weights times the first kRows rows of a tile.
template <int kRows>
inline void Dot(const uint8_t* weights, const int8_t* a, int64_t length,
                __m512i acc[kRows][kVectors]) {
  for (int64_t k = 0; k < length; k += 4) {
    __m512i w[kVectors];
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(weights + v * 64);
    weights += kStepBytes;
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = Broadcast4(a + r * 4);
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], w[v], x);
    }
    a += kTileRows * 4;
  }
}

// Rows from `row` (a multiple of kTileRows) on, activations from `begin` on.
inline const int8_t* TileRows(const Int4Block& block, int64_t row, int64_t begin) {
  return block.a + row * block.a_stride + begin * kTileRows;
}

// One stretch of k, scales already in the weights: the sums go on where they stopped.
struct FoldedTiles {
  const Int4Block& block;
  Scratch* scratch;
  int64_t begin;
  int64_t length;

  template <int kRows>
  void Run(int64_t row) const {
    __m512i acc[kRows][kVectors];
    int32_t* sums = scratch->sums + row * kPanel;
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] = _mm512_load_si512(sums + r * kPanel + v * kLanes);
      }
    }
    Dot<kRows>(scratch->weights, TileRows(block, row, begin), length, acc);
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        _mm512_store_si512(sums + r * kPanel + v * kLanes, acc[r][v]);
      }
    }
  }
};

// One group, scaled after its sum is known.
template <typename Form>
struct GroupTiles {
  const Int4Block& block;
  Scratch* scratch;
  int64_t g;
  int64_t begin;
  int64_t length;

  template <int kRows>
  void Run(int64_t row) const {
    __m512i partial[kRows][kVectors];
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) partial[r][v] = _mm512_setzero_si512();
    }
    Dot<kRows>(scratch->weights, TileRows(block, row, begin), length, partial);
    // Through memory, once per group: kept in registers up to their use below, g++ 12 stores the
    // accumulators in every round of the loop instead (measured: half the speed).
    alignas(64) int32_t partials[kRows * kPanel];
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        _mm512_store_si512(partials + r * kPanel + v * kLanes, partial[r][v]);
      }
    }
    __asm__ volatile("" : : "r"(partials) : "memory");
    for (int v = 0; v < kVectors; ++v) {
      const auto scale = Form::Load(block, g, v);
      const __m512i zero = LoadZeros(block, g, v);
      for (int r = 0; r < kRows; ++r) {
        const int32_t a_sum = block.group_sums[(row + r) * block.num_groups + g];
        const __m512i p = _mm512_sub_epi32(_mm512_load_si512(partials + r * kPanel + v * kLanes),
                                           _mm512_mullo_epi32(zero, _mm512_set1_epi32(a_sum)));
        int32_t* at = scratch->sums + (row + r) * kPanel + v * kLanes;
        Form::StoreSum(at, Form::Add(Form::LoadSum(at), p, scale));
      }
    }
  }
};

// The last tile runs with as many rows as it needs, rounded up to 4: those it has too many are
// zeros.
template <typename Tiles>
void ForTiles(int64_t rows, const Tiles& tiles) {
  int64_t row = 0;
  for (; row + 8 < rows; row += kTileRows) tiles.template Run<kTileRows>(row);
  if (row + 4 < rows) {
    tiles.template Run<8>(row);
  } else if (row < rows) {
    tiles.template Run<4>(row);
  }
}

void ClearSums(const Int4Block& block, Scratch* scratch) {
  const int64_t tiles = (block.rows + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < tiles * kTileRows * kPanel; i += kLanes) {
    _mm512_store_si512(scratch->sums + i, _mm512_setzero_si512());
  }
}

template <typename Form>
void ManyRows(const Int4Block& block) {
  Scratch scratch;
  ClearSums(block, &scratch);
  const uint8_t* codes = block.codes;
  int64_t begin = 0;
  for (int64_t g = 0; g < block.num_groups; ++g) {
    const int64_t length = GroupLength(block, g);
    Unpack<Plain>(block, g, codes, length, scratch.weights);
    ForTiles(block.rows, GroupTiles<Form>{block, &scratch, g, begin, length});
    codes += length / 8 * kStepBytes;
    begin += length;
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto sum = Form::LoadSum(scratch.sums + row * kPanel + v * kLanes);
      Store(block, row, v, Form::Finish(block, row, v, sum));
    }
  }
}

}  // namespace

void Int4FewRowsInteger(const Int4Block& block) { FewRows<Integer>(block); }
void Int4FewRowsFloat(const Int4Block& block) { FewRows<Float>(block); }
void Int4ManyRowsInteger(const Int4Block& block) { ManyRows<Integer>(block); }
void Int4ManyRowsFloat(const Int4Block& block) { ManyRows<Float>(block); }

void Int4ManyRowsFolded(const Int4Block& block) {
  Scratch scratch;
  ClearSums(block, &scratch);
  const uint8_t* codes = block.codes;
  int64_t begin = 0;
  for (int64_t g = 0; g < block.num_groups;) {
    int64_t stretch = 0;
    for (; g < block.num_groups; ++g) {
      const int64_t length = GroupLength(block, g);
      if (stretch + length > kStretch) break;
      Unpack<Fold>(block, g, codes, length, scratch.weights + stretch / 4 * kStepBytes);
      codes += length / 8 * kStepBytes;
      stretch += length;
    }
    ForTiles(block.rows, FoldedTiles{block, &scratch, begin, stretch});
    begin += stretch;
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    // The weight bytes are 128 too large.
    const __m512i excess = _mm512_slli_epi32(_mm512_set1_epi32(block.a_sums[row]), 7);
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i sum = _mm512_load_si512(scratch.sums + row * kPanel + v * kLanes);
      Store(block, row, v, ScaleSum(block, row, v, _mm512_sub_epi32(sum, excess)));
    }
  }
}

}  // namespace nibble::kernels::avx512vnni
