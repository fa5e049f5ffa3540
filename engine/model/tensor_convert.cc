// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/tensor_convert.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/float16.h"

namespace nibble::engine {
namespace {

constexpr int64_t kElementsPerPiece = 64 * 1024;
constexpr int64_t kElementsPerRead = 1024;  // floats on the stack

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kF16;
}

// False when `half` overflowed: infinite, and `value` is not.
bool Fits(Float16 half, float value) {
  return (half.bits & 0x7fffU) != 0x7c00U || std::isinf(value);
}

// Elements [begin, end) of a tensor, to be written one after the other.
struct Run {
  int64_t begin = 0;
  int64_t end = 0;
  uint8_t* out = nullptr;
};

// Rounds to 16 bits; the index of the first element that does not fit, or -1.
int64_t RoundRun(const TensorView& tensor, DType target, const Run& run) {
  std::array<float, kElementsPerRead> values;
  std::array<uint16_t, kElementsPerRead> bits;
  for (int64_t first = run.begin; first < run.end; first += kElementsPerRead) {
    const int64_t count = std::min(kElementsPerRead, run.end - first);
    // The type was checked and the range is ours.
    NIBBLE_CHECK(ReadFloats(tensor, first, count, values.data()).ok());
    for (int64_t i = 0; i < count; ++i) {
      const auto index = static_cast<size_t>(i);
      if (target == DType::kBf16) {
        bits[index] = ToBFloat16(values[index]).bits;
        continue;
      }
      const Float16 half = ToFloat16(values[index]);
      if (!Fits(half, values[index])) return first + i;
      bits[index] = half.bits;
    }
    std::memcpy(run.out + (first - run.begin) * 2, bits.data(), static_cast<size_t>(count) * 2);
  }
  return -1;
}

// The index of the first element that does not fit `target`, or -1.
int64_t ConvertRun(const TensorView& tensor, DType target, const Run& run) {
  const int64_t count = run.end - run.begin;
  if (tensor.dtype == target) {
    const auto element_bytes = static_cast<int64_t>(SizeOf(target));
    std::memcpy(run.out, tensor.bytes.data() + run.begin * element_bytes,
                static_cast<size_t>(count * element_bytes));
    return -1;
  }
  if (target == DType::kF32) {
    NIBBLE_CHECK(ReadFloats(tensor, run.begin, count, reinterpret_cast<float*>(run.out)).ok());
    return -1;
  }
  return RoundRun(tensor, target, run);
}

absl::Status CheckFloat(const TensorView& tensor) {
  if (IsFloat(tensor.dtype)) return absl::OkStatus();
  return InvalidArgument("{}: tensor {} is {}, want float32, bfloat16 or float16", tensor.file,
                         tensor.name, ToString(tensor.dtype));
}

}  // namespace

absl::Status ConvertTensor(const TensorView& tensor, DType target, uint8_t* out, ThreadPool* pool) {
  return ConvertShare(tensor, MatrixShare::Whole(1, tensor.num_elements()), target, out, pool);
}

absl::Status ConvertShare(const TensorView& tensor, const MatrixShare& share, DType target,
                          uint8_t* out, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckFloat(tensor));
  NIBBLE_CHECK(IsFloat(target));
  NIBBLE_CHECK_EQ(tensor.num_elements(), share.n * share.k);
  // Whole rows lie side by side: one line of elements, cut anywhere.
  const bool is_line = share.has_all_columns();
  const int64_t line_size = is_line ? share.num_elements() : share.columns.size();
  const int64_t num_lines = is_line ? 1 : share.rows.size();
  const int64_t stride = is_line ? 0 : share.k;
  const int64_t first = share.rows.begin * share.k + share.columns.begin;
  const int64_t pieces_per_line = (line_size + kElementsPerPiece - 1) / kElementsPerPiece;
  const int64_t grain = is_line ? 1 : std::max<int64_t>(1, kElementsPerPiece / line_size);
  const auto element_bytes = static_cast<int64_t>(SizeOf(target));
  std::atomic<int64_t> first_bad{std::numeric_limits<int64_t>::max()};
  pool->ParallelFor(num_lines * pieces_per_line, grain, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t line = piece / pieces_per_line;
      const int64_t from = piece % pieces_per_line * kElementsPerPiece;
      const int64_t to = std::min(from + kElementsPerPiece, line_size);
      const int64_t bad = ConvertRun(tensor, target,
                                     {.begin = first + line * stride + from,
                                      .end = first + line * stride + to,
                                      .out = out + (line * line_size + from) * element_bytes});
      int64_t seen = first_bad.load(std::memory_order_relaxed);
      while (bad >= 0 && bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
      }
    }
  });
  const int64_t bad = first_bad.load();
  if (bad == std::numeric_limits<int64_t>::max()) return absl::OkStatus();
  float value = 0.0F;
  NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, bad, 1, &value));
  return InvalidArgument(
      "{}: element {} of tensor {} is {}, float16 holds up to 65504: use bfloat16", tensor.file,
      bad, tensor.name, value);
}

absl::StatusOr<std::vector<float>> TensorToFloats(const TensorView& tensor, ThreadPool* pool) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  NIBBLE_RETURN_IF_ERROR(
      ConvertTensor(tensor, DType::kF32, reinterpret_cast<uint8_t*>(values.data()), pool));
  return values;
}

}  // namespace nibble::engine
