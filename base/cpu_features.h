// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What this CPU and its kernel allow. A feature is claimed only when CPUID has it, the operating
// system saves its registers (XCR0) and, for AMX, Linux granted the process its tile state and
// tiles keep their content over context switches (amx_probe.h).
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble {

// Instruction sets that kernels are written for, each including those before it.
enum class Isa { kRef, kAvx2, kAvx512Vnni, kAmx };

std::string_view ToString(Isa isa);

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA, F16C
  bool avx512 = false;  // F, BW, DQ, VL
  bool avx512_vnni = false;
  bool amx_int8 = false;  // AMX-TILE and AMX-INT8, tile state granted and kept
  bool amx_bf16 = false;
  std::string name;  // brand string, e.g. "Intel(R) Xeon(R) ..."

  // Highest set that the features above carry whole.
  Isa Best() const;
};

// Reads the CPU once; the same value ever after. Thread-safe.
const CpuFeatures& HostCpuFeatures();

// The set that kernels use: the host's best, or the one that environment variable FORCE_ISA names
// (ref, avx2, avx512vnni, amx). A name that is unknown or above the host is an error, never a
// silent fallback.
absl::StatusOr<Isa> ChooseIsa();
absl::StatusOr<Isa> ChooseIsa(const CpuFeatures& features, std::string_view forced);

}  // namespace nibble
