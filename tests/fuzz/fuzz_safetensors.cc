// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as a safetensors file: an error or views that stay inside them.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "engine/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::engine::TensorView;
  const auto tensors = nibble::engine::ParseSafetensors({data, size}, "fuzz.safetensors");
  if (!tensors.ok()) return 0;
  int64_t total = 0;
  for (const TensorView& tensor : *tensors) {
    const auto bytes = static_cast<int64_t>(tensor.bytes.size());
    if (tensor.num_elements() * static_cast<int64_t>(SizeOf(tensor.dtype)) != bytes) std::abort();
    if (bytes > 0 && (tensor.bytes.data() < data || tensor.bytes.data() + bytes > data + size)) {
      std::abort();
    }
    total += bytes;
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    (void)ReadFloats(tensor, 0, tensor.num_elements(), values.data());
  }
  if (total > static_cast<int64_t>(size)) std::abort();
  return 0;
}
