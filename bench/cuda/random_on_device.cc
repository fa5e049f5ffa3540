// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda/random_on_device.h"

#include <algorithm>
#include <vector>

#include "bench/random_weight.h"

namespace nibble::bench {

absl::StatusOr<gpu::DeviceBuffer<uint16_t>> RandomOnDevice(RandomKind kind, int64_t count,
                                                           uint32_t seed, cudaStream_t stream) {
  constexpr size_t kPeriod = size_t{4} << 20;
  NIBBLE_ASSIGN_OR_RETURN(auto buffer,
                          gpu::DeviceBuffer<uint16_t>::Create(static_cast<size_t>(count)));
  if (count == 0) return buffer;
  std::vector<uint16_t> values(std::min(buffer.size(), kPeriod));
  if (kind == RandomKind::kBf16) {
    FillRandomBf16(values, seed);
  } else {
    FillRandomBytes({reinterpret_cast<uint8_t*>(values.data()), values.size() * sizeof(uint16_t)},
                    seed);
  }
  NIBBLE_RETURN_IF_ERROR(gpu::CopyToDeviceAndWait(buffer.data(), values.data(),
                                                  values.size() * sizeof(uint16_t), stream));
  for (size_t at = values.size(); at < buffer.size(); at += values.size()) {
    const size_t part = std::min(values.size(), buffer.size() - at);
    NIBBLE_RETURN_IF_ERROR(
        gpu::CopyOnDevice(buffer.data() + at, buffer.data(), part * sizeof(uint16_t), stream));
  }
  return buffer;
}

}  // namespace nibble::bench
