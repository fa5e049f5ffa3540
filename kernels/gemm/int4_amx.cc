// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W4A8 with signed 8-bit tiles. Codes become bytes whose products with the activations add up over
// all of k, in one pass or, where scales need more than 8 bits, in one pass per digit.

#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/amx_kernels.h"
#include "kernels/gemm/amx_multiply.h"

namespace nibble::kernels::amx {
namespace {

inline __m512i LowHalves(__m512i codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
inline __m512i HighHalves(__m512i codes) {
  return _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(15));
}

inline __m512i LoadBytes(const uint8_t* bytes) {  // 16 bytes, one per lane
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Where 16 output channels are: vector v of a panel, in one group.
struct Channels {
  const AmxInt4& weight;
  int64_t panel;
  int64_t group;
  int v;
  inline int64_t AtGroup() const {
    return (panel * weight.num_groups + group) * kAmxPanel + v * kLanes;
  }
  inline __m512i Integers() const {
    const int32_t* offset = weight.integer_offset + panel * kAmxPanel + v * kLanes;
    return _mm512_add_epi32(LoadBytes(weight.integers + AtGroup()), _mm512_loadu_si512(offset));
  }
  inline __m512i Zeros() const {
    return weight.zeros == nullptr ? _mm512_set1_epi32(8) : LoadBytes(weight.zeros + AtGroup());
  }
};

// Each 16-bit half, or each byte, of a 32-bit lane holds the lane's value.
inline __m512i InHalves(__m512i x) {
  return _mm512_or_si512(_mm512_and_si512(x, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(x, 16));
}
inline __m512i InBytes(__m512i x) {
  return _mm512_shuffle_epi8(x, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0x00000000));
}

// ---- From codes 0..15 to bytes

// (u - 8) * f for a factor f in -15..16 per channel. f >= 0: u * f - 8 f. f < 0: the same with the
// complement of u, because (u - 8) * f = ((15 - u) - 7) * |f|. Two products in a 16-bit half never
// carry into each other (15 * 16 = 240), so one 16-bit multiplication serves both.
class Multiples {
 public:
  explicit Multiples(__m512i factor) {
    const __m512i negative = _mm512_srai_epi32(factor, 31);
    const __m512i magnitude = _mm512_abs_epi32(factor);
    complement_ = _mm512_and_si512(negative, _mm512_set1_epi8(15));
    multiplier_ = InHalves(magnitude);
    // 8 f or 7 |f|
    zero_ = InBytes(
        _mm512_sub_epi32(_mm512_slli_epi32(magnitude, 3), _mm512_and_si512(negative, magnitude)));
  }
  inline __m512i operator()(__m512i u) const {
    const __m512i product = _mm512_mullo_epi16(_mm512_xor_si512(u, complement_), multiplier_);
    return _mm512_sub_epi8(product, zero_);
  }

 private:
  __m512i complement_;  // 15 in each byte where the factor is negative
  __m512i multiplier_;
  __m512i zero_;
};

// Digits of (u - z) * S, which needs 13 bits: 128 * high + low with high in -30..30, low in
// -64..63.
class WideDigits {
 public:
  explicit WideDigits(const Channels& channels) {
    const __m512i s = channels.Integers();
    multiplier_ = InHalves(s);
    const __m512i zero = _mm512_mullo_epi32(channels.Zeros(), s);
    addend_ = InHalves(_mm512_sub_epi32(_mm512_set1_epi32(64), zero));
  }

 protected:
  // 64 + (u - z) * S of the even and the odd bytes, in 16 bits.
  inline __m512i Even(__m512i u) const {
    return Product(_mm512_and_si512(u, _mm512_set1_epi16(0xff)));
  }
  inline __m512i Odd(__m512i u) const { return Product(_mm512_srli_epi16(u, 8)); }
  // Low bytes from `even`, high bytes from `odd`.
  static inline __m512i Merge(__m512i even, __m512i odd) {
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaULL, even, odd);
  }

 private:
  inline __m512i Product(__m512i u) const {
    return _mm512_add_epi16(_mm512_mullo_epi16(u, multiplier_), addend_);
  }
  __m512i multiplier_;
  __m512i addend_;
};
struct WideHigh : WideDigits {
  using WideDigits::WideDigits;
  inline __m512i operator()(__m512i u) const {
    return Merge(_mm512_srli_epi16(Even(u), 7), _mm512_slli_epi16(Odd(u), 1));
  }
};
struct WideLow : WideDigits {
  using WideDigits::WideDigits;
  inline __m512i operator()(__m512i u) const {
    const __m512i low =
        _mm512_and_si512(Merge(Even(u), _mm512_slli_epi16(Odd(u), 8)), _mm512_set1_epi8(127));
    return _mm512_sub_epi8(low, _mm512_set1_epi8(64));
  }
};

struct Folded : Multiples {
  explicit Folded(const Channels& channels) : Multiples(channels.Integers()) {}
};
// S = 16 * high + low with low in -8..7, so that S in -127..255 has high in -8..16.
inline __m512i LowDigit(__m512i s) {
  const __m512i eight = _mm512_set1_epi32(8);
  const __m512i mod = _mm512_and_si512(_mm512_add_epi32(s, eight), _mm512_set1_epi32(15));
  return _mm512_sub_epi32(mod, eight);
}
struct NarrowLow : Multiples {
  explicit NarrowLow(const Channels& channels) : Multiples(LowDigit(channels.Integers())) {}
};
struct NarrowHigh : Multiples {
  explicit NarrowHigh(const Channels& channels) : Multiples(HighDigit(channels.Integers())) {}
  static inline __m512i HighDigit(__m512i s) {
    return _mm512_srai_epi32(_mm512_sub_epi32(s, LowDigit(s)), 4);
  }
};
class Difference {  // u - z
 public:
  explicit Difference(const Channels& channels) : zero_(InBytes(channels.Zeros())) {}
  inline __m512i operator()(__m512i u) const { return _mm512_sub_epi8(u, zero_); }

 private:
  __m512i zero_;
};

// Codes [k / 8, panel, 4] to bytes [k / 4, panel, 4] for `length` k of one group.
template <typename ToBytes>
void UnpackGroup(const AmxInt4& weight, int64_t panel, int64_t group, const uint8_t* codes,
                 int64_t length, uint8_t* out) {
  for (int v = 0; v < kVectors; ++v) {
    const ToBytes to_bytes(Channels{weight, panel, group, v});
    const uint8_t* from = codes + v * 64;
    uint8_t* to = out + v * 64;
    for (int64_t k = 0; k < length; k += 8) {
      const __m512i packed = _mm512_loadu_si512(from);
      _mm512_store_si512(to, to_bytes(LowHalves(packed)));
      _mm512_store_si512(to + kAmxPanelRowBytes, to_bytes(HighHalves(packed)));
      from += kAmxPanelRowBytes;
      to += 2 * kAmxPanelRowBytes;
    }
  }
}

inline const uint8_t* Codes(const AmxInt4& weight, int64_t panel, int64_t k) {
  return weight.codes + (panel * weight.packed_k + k) * (kAmxPanel / 2);
}

// k in [begin, end) of a panel. Past packed_k `out` keeps what it has: activations are zero there.
// Groups follow each other without gaps.
template <typename ToBytes>
void Unpack(const AmxInt4& weight, int64_t panel, int64_t begin, int64_t end, uint8_t* out) {
  const int64_t limit = end < weight.packed_k ? end : weight.packed_k;
  for (int64_t k = begin; k < limit;) {
    const int64_t group = k / weight.group;
    const int64_t group_end = (group + 1) * weight.group;
    const int64_t stop = group_end < limit ? group_end : limit;
    UnpackGroup<ToBytes>(weight, panel, group, Codes(weight, panel, k), stop - k,
                         out + (k - begin) * kAmxPanel);
    k = stop;
  }
}

// One pass per ToBytes.
template <int kShift, typename... ToBytes>
struct Int4Form {
  using Kind = SignedBytes;
  static constexpr int kPasses = sizeof...(ToBytes);
  static constexpr int kPassShift = kShift;
  const AmxBlock& block;

  inline void Weights(int pass, int64_t panel, Stretch* stretch) const {
    constexpr decltype(&Unpack<Folded>) kUnpack[] = {Unpack<ToBytes>...};
    const int64_t begin = stretch->begin * kAmxRowBytes;
    const int64_t length = stretch->num_steps * kAmxRowBytes;
    kUnpack[pass](block.int4, panel, begin, begin + length, block.scratch);
    stretch->weights = block.scratch;
    // The next panel of the block, or the next stretch of the first one.
    const bool last = panel + 1 == block.num_panels;
    stretch->next =
        last ? Codes(block.int4, 0, begin + length) : Codes(block.int4, panel + 1, begin);
    stretch->next_bytes = length * kAmxPanel / 2;
  }
};

// ---- Float form: the sum of each group is scaled and added as soon as it is known.

struct AddScaledGroup {
  const AmxBlock& block;
  const Stretch& stretch;
  __m512 scales[kVectors];
  float* sums;  // of the panel

  template <int kRowTiles>
  inline void Run(int64_t tile) const {
    constexpr int64_t kCount = kRowTiles * kAmxTileRows * kAmxPanel;
    alignas(64) int32_t partial[kCount];
    ZeroC<kRowTiles>();
    DotSteps<SignedBytes, kRowTiles>(
        block, block.a + (tile * block.num_steps + stretch.begin) * kAmxTileBytes, stretch);
    StoreC<kRowTiles>(partial);
    float* at = sums + tile * kAmxTileRows * kAmxPanel;
    for (int64_t i = 0; i < kCount; i += kAmxPanel) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        float* sum = at + i + v * kLanes;
        const __m512 p = _mm512_cvtepi32_ps(_mm512_load_si512(partial + i + v * kLanes));
        _mm512_store_ps(sum, _mm512_fmadd_ps(p, scales[v], _mm512_load_ps(sum)));
      }
    }
  }
};

}  // namespace

void Int4Folded(const AmxBlock& block) {
  Multiply(block, Int4Form<0, Folded>{block});
  ForSums(block,
          [&](int64_t row, int64_t column, __m512i sum) { StoreScaled(block, row, column, sum); });
}

void Int4Integer(const AmxBlock& block) {
  if (block.int4.zeros == nullptr) {
    Multiply(block, Int4Form<4, NarrowHigh, NarrowLow>{block});
  } else {
    Multiply(block, Int4Form<7, WideHigh, WideLow>{block});
  }
  ForSums(block,
          [&](int64_t row, int64_t column, __m512i sum) { StoreScaled(block, row, column, sum); });
}

void Int4Float(const AmxBlock& block) {
  const AmxInt4& weight = block.int4;
  int64_t step = 0;
  for (int64_t group = 0; group < weight.num_groups; ++group) {
    const int64_t k = group * weight.group;
    const int64_t length = weight.packed_k - k < weight.group ? weight.packed_k - k : weight.group;
    const int64_t num_steps = (length + kAmxRowBytes - 1) / kAmxRowBytes;
    for (int64_t panel = 0; panel < block.num_panels; ++panel) {
      UnpackGroup<Difference>(weight, panel, group, Codes(weight, panel, k), length, block.scratch);
      auto* sums = reinterpret_cast<float*>(PanelSums(block, panel));
      if (group == 0) {
        for (int64_t i = 0; i < NumRowTiles(block) * kAmxTileRows * kAmxPanel; i += kLanes) {
          _mm512_store_ps(sums + i, _mm512_setzero_ps());
        }
      }
      const bool last = panel + 1 == block.num_panels;
      const Stretch stretch = {
          .weights = block.scratch,
          .begin = step,
          .num_steps = num_steps,
          .next = last ? Codes(weight, 0, k + length) : Codes(weight, panel + 1, k),
          .next_bytes = length * kAmxPanel / 2};
      const float* scales = weight.float_scales + (panel * weight.num_groups + group) * kAmxPanel;
      ForRowTiles(
          block, stretch,
          AddScaledGroup{
              block, stretch, {_mm512_loadu_ps(scales), _mm512_loadu_ps(scales + kLanes)}, sums});
    }
    step += num_steps;
  }
  ForSums(block, [&](int64_t row, int64_t column, __m512i sum) {
    const __m512 scale = _mm512_set1_ps(block.a_scales[row]);
    StoreOutputs(block, row, column, _mm512_mul_ps(_mm512_castsi512_ps(sum), scale));
  });
}

}  // namespace nibble::kernels::amx
