// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/device/pick_by_isa.h"

#include "gtest/gtest.h"

namespace nibble::kernels {
namespace {

int Ref() { return 0; }
int Avx2() { return 1; }
int Avx512() { return 2; }

TEST(PickByIsa, AmxMachinesRunTheAvx512Form) {
  EXPECT_EQ(PickByIsa(Isa::kRef, Ref, Avx2, Avx512)(), 0);
  EXPECT_EQ(PickByIsa(Isa::kAvx2, Ref, Avx2, Avx512)(), 1);
  EXPECT_EQ(PickByIsa(Isa::kAvx512Vnni, Ref, Avx2, Avx512)(), 2);
  EXPECT_EQ(PickByIsa(Isa::kAmx, Ref, Avx2, Avx512)(), 2);
}

}  // namespace
}  // namespace nibble::kernels
