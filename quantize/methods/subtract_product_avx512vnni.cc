// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/subtract_product.h"

namespace nibble::quantize::avx512vnni {

constexpr int kLanes = 8;    // AVX-512
constexpr int kVectors = 4;  // the tile's sums leave registers for an operand of each side

#include "quantize/methods/subtract_product_impl.h"

}  // namespace nibble::quantize::avx512vnni
