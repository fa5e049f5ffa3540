// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The choice of ops that have a form for each instruction set but AMX.
#pragma once

#include "base/cpu_features.h"

namespace nibble::kernels {

// Nothing in these ops is a matrix product: AMX machines run the AVX-512 form.
template <typename Function>
Function* PickByIsa(Isa isa, Function* ref, Function* avx2, Function* avx512vnni) {
  switch (isa) {
    case Isa::kRef:
      break;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512Vnni:
    case Isa::kAmx:
      return avx512vnni;
  }
  return ref;
}

}  // namespace nibble::kernels
