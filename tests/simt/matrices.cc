// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/matrices.h"

#include <bit>
#include <cstring>

#include "base/float16.h"
#include "tests/simt/simt.h"

namespace simt {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFU;

struct LoadMatrixArgs {
  uint32_t* registers;
  int num_matrices;
  const void* row;
};

template <bool kTransposed>
void PerformLoadMatrix(void* const* all, unsigned) {
  const int num_matrices = static_cast<LoadMatrixArgs*>(all[0])->num_matrices;
  for (int matrix = 0; matrix < num_matrices; ++matrix) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(elements[row], static_cast<LoadMatrixArgs*>(all[matrix * 8 + row])->row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4;
      const int column = lane % 4 * 2;
      const uint32_t low = kTransposed ? elements[column][row] : elements[row][column];
      const uint32_t high = kTransposed ? elements[column + 1][row] : elements[row][column + 1];
      static_cast<LoadMatrixArgs*>(all[lane])->registers[matrix] = low | high << 16;
    }
  }
}

template <typename D>
struct MmaArgs {
  D* d;
  const uint32_t* a;
  const uint32_t* b;
};

// What is multiplied of a register: wide enough that the sums are exact or nearly so.
struct S8 {
  static constexpr int kPerRegister = 4;
  using Factor = int16_t;
  using Sum = int;
  static Factor Get(uint32_t bits, int i) { return static_cast<int8_t>(bits >> (8 * i)); }
  static int Add(int d, Sum sum) {
    return static_cast<int>(static_cast<uint32_t>(d) + static_cast<uint32_t>(sum));
  }
};
template <typename Element>
struct Float16Bits {
  static constexpr int kPerRegister = 2;
  using Factor = float;
  using Sum = double;
  static Factor Get(uint32_t bits, int i) {
    return nibble::ToFloat(Element{static_cast<uint16_t>(bits >> (16 * i))});
  }
  static float Add(float d, Sum sum) { return static_cast<float>(d + sum); }
};

// Register i of lane l: rows l / 4 and, for odd i of A, 8 more; the lower k, then the higher.
template <typename D, typename Element>
void PerformMma(void* const* all, unsigned) {
  using Args = MmaArgs<D>;
  constexpr int kPer = Element::kPerRegister;
  constexpr int kDepth = 8 * kPer;
  typename Element::Factor a[16][kDepth];
  typename Element::Factor b[8][kDepth];
  for (int lane = 0; lane < 32; ++lane) {
    const Args& args = *static_cast<Args*>(all[lane]);
    for (int i = 0; i < kPer; ++i) {
      const int k = lane % 4 * kPer + i;
      a[lane / 4][k] = Element::Get(args.a[0], i);
      a[lane / 4 + 8][k] = Element::Get(args.a[1], i);
      a[lane / 4][k + kDepth / 2] = Element::Get(args.a[2], i);
      a[lane / 4 + 8][k + kDepth / 2] = Element::Get(args.a[3], i);
      b[lane / 4][k] = Element::Get(args.b[0], i);
      b[lane / 4][k + kDepth / 2] = Element::Get(args.b[1], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    D* const d = static_cast<Args*>(all[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const auto* const a_row = a[lane / 4 + i / 2 * 8];
      const auto* const b_row = b[lane % 4 * 2 + i % 2];
      typename Element::Sum sum = 0;
      for (int k = 0; k < kDepth; ++k) {
        sum += static_cast<typename Element::Sum>(a_row[k]) * b_row[k];
      }
      d[i] = Element::Add(d[i], sum);
    }
  }
}

template <typename Element, typename D>
void Mma(const char* what, D* d, const uint32_t* a, const uint32_t* b) {
  MmaArgs<D> args{d, a, b};
  WarpMeeting(kAllLanes, what, &args, PerformMma<D, Element>);
}

}  // namespace

void LoadMatrix(uint32_t* registers, int num_matrices, const void* row, bool transposed) {
  if (Lane() < num_matrices * 8) {
    CheckAligned(row, 16, "ldmatrix");
    CheckShared(row, 16, "ldmatrix");
  }
  LoadMatrixArgs args{registers, num_matrices, row};
  WarpMeeting(kAllLanes,
              !transposed         ? "LoadMatrixX4"
              : num_matrices == 4 ? "LoadMatrixX4Trans"
                                  : "LoadMatrixX2Trans",
              &args, transposed ? PerformLoadMatrix<true> : PerformLoadMatrix<false>);
}

void MmaS8(int* d, const uint32_t* a, const uint32_t* b) { Mma<S8>("MmaS8", d, a, b); }
void MmaBf16(float* d, const uint32_t* a, const uint32_t* b) {
  Mma<Float16Bits<nibble::BFloat16>>("MmaBf16", d, a, b);
}
void MmaF16(float* d, const uint32_t* a, const uint32_t* b) {
  Mma<Float16Bits<nibble::Float16>>("MmaF16", d, a, b);
}

}  // namespace simt
