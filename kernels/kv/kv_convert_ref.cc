// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/float16.h"
#include "kernels/kv/kv_convert.h"

namespace nibble::kernels::ref {

void ConvertToBf16(const float* in, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = ToBFloat16(in[i]).bits;
}

void ConvertToF16(const float* in, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = ToFloat16(in[i]).bits;
}

}  // namespace nibble::kernels::ref
