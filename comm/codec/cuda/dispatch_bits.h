// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From a codec's bits to the instance of a template.
#pragma once

#include <type_traits>

#include "base/status.h"

namespace nibble::comm::cuda {

// body(std::integral_constant<int, bits>()), which returns a Status. INVALID_ARGUMENT for bits that
// no codec has.
template <typename Body>
absl::Status DispatchBits(int bits, const Body& body) {
  switch (bits) {
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    case 5:
      return body(std::integral_constant<int, 5>());
    case 6:
      return body(std::integral_constant<int, 6>());
    case 8:
      return body(std::integral_constant<int, 8>());
    case 16:
      return body(std::integral_constant<int, 16>());
    case 32:
      return body(std::integral_constant<int, 32>());
    default:
      return InvalidArgument("codec has {} bits, want 2, 3, 4, 5, 6, 8, 16 or 32", bits);
  }
}

}  // namespace nibble::comm::cuda
