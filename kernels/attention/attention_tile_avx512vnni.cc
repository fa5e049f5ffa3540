// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/attention_simd_avx512.h"
#include "kernels/attention/attention_tile_impl.h"

namespace nibble::kernels::avx512vnni {

void PackTile(const PackTileArgs& args) { PackTileWith<Simd>(args); }
void AttendTile(const AttendTileArgs& args) { AttendTileWith<Simd>(args); }

}  // namespace nibble::kernels::avx512vnni
