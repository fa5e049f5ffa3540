// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/cuda/row_plan.h"

#include <limits>

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max();  // of a grid
constexpr int64_t kAlign = 16;                                       // bytes: one access

bool IsAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kAlign == 0; }

absl::Status CheckRows(int64_t num_rows) {
  if (num_rows < 0 || num_rows > kMaxBlocks) {
    return InvalidArgument("the number of rows is {}, the limits are 0 and {}", num_rows,
                           kMaxBlocks);
  }
  return absl::OkStatus();
}

}  // namespace

fmt::string_view TypeName(DType dtype) {
  const std::string_view name = ToString(dtype);
  return {name.data(), name.size()};
}

absl::Status CheckColumns(const char* name, int64_t columns, int64_t limit) {
  if (columns < 8 || columns > limit || columns % 8 != 0) {
    return InvalidArgument("{} is {}, wanted is a multiple of 8, {} at most", name, columns, limit);
  }
  return absl::OkStatus();
}

absl::Status CheckGrid(int64_t num_rows, int64_t per_row) {
  if (num_rows < 0 || num_rows > kMaxBlocks / per_row) {
    return InvalidArgument("the number of rows is {}, the limits are 0 and {}", num_rows,
                           kMaxBlocks / per_row);
  }
  return absl::OkStatus();
}

absl::Status CheckMatrix(const char* name, const DeviceMatrix& x, int64_t num_rows,
                         int64_t columns) {
  NIBBLE_RETURN_IF_ERROR(CheckRows(num_rows));
  if (x.dtype != DType::kF32 && x.dtype != DType::kBf16 && x.dtype != DType::kF16) {
    return InvalidArgument("{} is of {}, wanted is float32, bfloat16 or float16", name,
                           TypeName(x.dtype));
  }
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  if (x.stride < columns || x.stride * element % kAlign != 0) {
    return InvalidArgument(
        "the stride of {} is {} elements, wanted are {} or more of whole {} bytes", name, x.stride,
        columns, kAlign);
  }
  if (num_rows > 0 && (x.data == nullptr || !IsAligned(x.data))) {
    return InvalidArgument("{} is at {}, wanted is memory aligned to {} bytes", name, x.data,
                           kAlign);
  }
  return absl::OkStatus();
}

absl::Status CheckOutput(const RowOutput& out, int64_t num_rows, int64_t columns) {
  NIBBLE_RETURN_IF_ERROR(CheckRows(num_rows));
  if (out.values.data != nullptr) {
    NIBBLE_RETURN_IF_ERROR(CheckMatrix("the output", out.values, num_rows, columns));
  }
  const QuantizedRows& quantized = out.quantized;
  if (quantized.values == nullptr) {
    if (out.values.data == nullptr && num_rows > 0) return InvalidArgument("there is no output");
    return absl::OkStatus();
  }
  if (quantized.stride < columns || quantized.stride % kAlign != 0) {
    return InvalidArgument("the stride of int8 rows is {}, wanted are {} or more, a multiple of {}",
                           quantized.stride, columns, kAlign);
  }
  if (!IsAligned(quantized.values) || quantized.scales == nullptr || quantized.sums == nullptr) {
    return InvalidArgument(
        "int8 rows are at {}, their scales at {}, their sums at {}: wanted are memory aligned to "
        "{} "
        "bytes and both of the others",
        static_cast<const void*>(quantized.values), static_cast<const void*>(quantized.scales),
        static_cast<const void*>(quantized.sums), kAlign);
  }
  return absl::OkStatus();
}

RowPlan PlanRow(int64_t columns) {
  constexpr int64_t kThreads = 512;
  const int64_t chunks = columns / 8;
  for (const int held : {1, 2, 4, 8}) {
    if (chunks > held * kThreads) continue;
    const int64_t threads = (chunks + held - 1) / held;
    return {.held = held, .threads = static_cast<unsigned>((threads + 31) / 32 * 32)};
  }
  return {.held = 0, .threads = kThreads};
}

}  // namespace nibble::kernels::cuda
