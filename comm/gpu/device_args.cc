// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/device_args.h"

namespace nibble::comm {

absl::Status CheckAllReduce(const DeviceAllReduceArgs& args, int64_t max_values) {
  if (args.dtype != DType::kF32 && args.dtype != DType::kBf16) {
    return InvalidArgument("an all-reduce on the device of {}, want float32 or bfloat16",
                           ToString(args.dtype));
  }
  if (args.num_rows < 0 || args.row_size < 0 ||
      (args.row_size > 0 && args.num_rows > max_values / args.row_size)) {
    return InvalidArgument("an all-reduce on the device of {} rows of {} values, the limit is {}",
                           args.num_rows, args.row_size, max_values);
  }
  if (args.data == nullptr && args.num_rows > 0 && args.row_size > 0) {
    return InvalidArgument("an all-reduce on the device of {} rows without data", args.num_rows);
  }
  return absl::OkStatus();
}

absl::Status CheckAllGather(const void* send, int64_t bytes, const void* recv) {
  if (bytes < 0 || (bytes > 0 && (send == nullptr || recv == nullptr))) {
    return InvalidArgument("an all-gather on the device of {} bytes{}", bytes,
                           bytes > 0 ? " without memory" : "");
  }
  for (const void* const data : {send, recv}) {
    constexpr uintptr_t kAlign = 16;
    if (reinterpret_cast<uintptr_t>(data) % kAlign != 0) {
      return InvalidArgument(
          "an all-gather on the device of memory {} bytes behind a multiple of {}",
          reinterpret_cast<uintptr_t>(data) % kAlign, kAlign);
    }
  }
  return absl::OkStatus();
}

}  // namespace nibble::comm
