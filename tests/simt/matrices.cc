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

int64_t Products(uint32_t a, uint32_t b, int8_t) {
  int64_t sum = 0;
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  }
  return sum;
}
template <typename Element>
double Products(uint32_t a, uint32_t b, Element) {
  double sum = 0;
  for (int i = 0; i < 2; ++i) {
    sum += static_cast<double>(nibble::ToFloat(Element{static_cast<uint16_t>(a >> (16 * i))})) *
           nibble::ToFloat(Element{static_cast<uint16_t>(b >> (16 * i))});
  }
  return sum;
}
int Add(int d, int64_t sum) {
  return static_cast<int>(static_cast<uint32_t>(d) + static_cast<uint32_t>(sum));
}
float Add(float d, double sum) { return static_cast<float>(d + sum); }

// Rows of A: register i % 2 has rows 8 (i % 2) + lane / 4, register i / 2 the lower or higher k.
template <typename D, typename Element>
void PerformMma(void* const* all, unsigned) {
  using Args = MmaArgs<D>;
  for (int lane = 0; lane < 32; ++lane) {
    D* const d = static_cast<Args*>(all[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4;
      const int column = lane % 4 * 2 + i % 2;
      auto sum = Products(0, 0, Element{});
      for (int t = 0; t < 4; ++t) {
        const uint32_t* const a = static_cast<Args*>(all[row * 4 + t])->a;
        const uint32_t* const b = static_cast<Args*>(all[column * 4 + t])->b;
        sum += Products(a[i / 2], b[0], Element{}) + Products(a[i / 2 + 2], b[1], Element{});
      }
      d[i] = Add(d[i], sum);
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
              transposed          ? num_matrices == 4 ? "LoadMatrixX4Trans" : "LoadMatrixX2Trans"
              : num_matrices == 4 ? "LoadMatrixX4"
                                  : "LoadMatrixX2",
              &args, transposed ? PerformLoadMatrix<true> : PerformLoadMatrix<false>);
}

void MmaS8(int* d, const uint32_t* a, const uint32_t* b) { Mma<int8_t>("MmaS8", d, a, b); }
void MmaBf16(float* d, const uint32_t* a, const uint32_t* b) {
  Mma<nibble::BFloat16>("MmaBf16", d, a, b);
}
void MmaF16(float* d, const uint32_t* a, const uint32_t* b) {
  Mma<nibble::Float16>("MmaF16", d, a, b);
}

}  // namespace simt
