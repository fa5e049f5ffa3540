// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Elements of dense weights while packing: any of the three storage types through float, which is
// exact for all of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/dtype.h"
#include "base/float16.h"

namespace nibble::kernels {

inline float LoadElement(const void* elements, DType storage, int64_t index) {
  const auto* bytes = static_cast<const uint8_t*>(elements);
  if (storage == DType::kF32) {
    float value = 0.0F;
    std::memcpy(&value, bytes + index * 4, 4);
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, bytes + index * 2, 2);
  return storage == DType::kBf16 ? ToFloat(BFloat16{bits}) : ToFloat(Float16{bits});
}

// Rounds to nearest even.
inline void StoreElement(float value, DType storage, int64_t index, void* elements) {
  auto* bytes = static_cast<uint8_t*>(elements);
  if (storage == DType::kF32) {
    std::memcpy(bytes + index * 4, &value, 4);
    return;
  }
  const uint16_t bits = storage == DType::kBf16 ? ToBFloat16(value).bits : ToFloat16(value).bits;
  std::memcpy(bytes + index * 2, &bits, 2);
}

}  // namespace nibble::kernels
