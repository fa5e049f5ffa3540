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

// Converts elements [begin, end); the index of the first that does not fit, or -1.
int64_t ConvertRange(const TensorView& tensor, DType target, int64_t begin, int64_t end,
                     uint8_t* out) {
  std::array<float, kElementsPerRead> values;
  std::array<uint16_t, kElementsPerRead> bits;
  for (int64_t first = begin; first < end; first += kElementsPerRead) {
    const int64_t count = std::min(kElementsPerRead, end - first);
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
    std::memcpy(out + first * 2, bits.data(), static_cast<size_t>(count) * 2);
  }
  return -1;
}

}  // namespace

absl::Status ConvertTensor(const TensorView& tensor, DType target, uint8_t* out, ThreadPool* pool) {
  if (!IsFloat(tensor.dtype)) {
    return InvalidArgument("{}: tensor {} is {}, want float32, bfloat16 or float16", tensor.file,
                           tensor.name, ToString(tensor.dtype));
  }
  NIBBLE_CHECK(IsFloat(target));
  const int64_t count = tensor.num_elements();
  std::atomic<int64_t> first_bad{std::numeric_limits<int64_t>::max()};
  pool->ParallelFor(count, kElementsPerPiece, [&](int64_t begin, int64_t end) {
    const auto element_bytes = static_cast<int64_t>(SizeOf(target));
    if (tensor.dtype == target) {
      std::memcpy(out + begin * element_bytes, tensor.bytes.data() + begin * element_bytes,
                  static_cast<size_t>((end - begin) * element_bytes));
    } else if (target == DType::kF32) {
      NIBBLE_CHECK(
          ReadFloats(tensor, begin, end - begin, reinterpret_cast<float*>(out) + begin).ok());
    } else if (const int64_t bad = ConvertRange(tensor, target, begin, end, out); bad >= 0) {
      int64_t seen = first_bad.load(std::memory_order_relaxed);
      while (bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
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
