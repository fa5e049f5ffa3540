// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/subtract_product.h"

namespace nibble::quantize::ref {

constexpr int kLanes = 2;    // SSE2, which every x86-64 has
constexpr int kVectors = 2;  // the tile's sums leave registers for an operand of each side

#include "quantize/methods/subtract_product_impl.h"

}  // namespace nibble::quantize::ref
