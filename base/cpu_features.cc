// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "base/amx_probe.h"

namespace nibble {
namespace {

uint64_t ReadXcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux keeps AMX's 8 KiB of tile state switched off until a process asks for it
// (Documentation/arch/x86/xstate).
bool RequestAmxPermission() {
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
}

std::string BrandString() {
  char brand[49] = {};
  for (uint32_t leaf = 0; leaf < 3; ++leaf) {
    uint32_t regs[4] = {};
    if (__get_cpuid(0x80000002U + leaf, &regs[0], &regs[1], &regs[2], &regs[3]) == 0)
      return "unknown CPU";
    std::memcpy(brand + leaf * 16, regs, sizeof(regs));
  }
  std::string name(brand);
  const size_t first = name.find_first_not_of(' ');
  const size_t last = name.find_last_not_of(' ');
  return first == std::string::npos ? "unknown CPU" : name.substr(first, last - first + 1);
}

CpuFeatures Detect() {
  CpuFeatures features;
  features.name = BrandString();
  uint32_t a = 0;
  uint32_t b = 0;
  uint32_t c = 0;
  uint32_t d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return features;
  const bool osxsave = (c & bit_OSXSAVE) != 0;
  const bool fma = (c & bit_FMA) != 0;
  const bool f16c = (c & bit_F16C) != 0;
  if (!osxsave) return features;
  const uint64_t xcr0 = ReadXcr0();
  const bool os_avx = (xcr0 & 0x6) == 0x6;
  const bool os_avx512 = (xcr0 & 0xe6) == 0xe6;
  const bool os_amx = (xcr0 & 0x60000) == 0x60000;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
  features.avx2 = os_avx && fma && f16c && (b & bit_AVX2) != 0;
  constexpr uint32_t kAvx512Parts = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  features.avx512 = features.avx2 && os_avx512 && (b & kAvx512Parts) == kAvx512Parts;
  features.avx512_vnni = features.avx512 && (c & bit_AVX512VNNI) != 0;
  constexpr uint32_t kAmxTile = 1U << 24;
  constexpr uint32_t kAmxInt8 = 1U << 25;
  constexpr uint32_t kAmxBf16 = 1U << 22;
  if (os_amx && (d & kAmxTile) != 0 && RequestAmxPermission() && AmxTilesSurviveSwitches()) {
    features.amx_int8 = (d & kAmxInt8) != 0;
    features.amx_bf16 = (d & kAmxBf16) != 0;
  }
  return features;
}

}  // namespace

std::string_view ToString(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return "ref";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512Vnni:
      return "avx512vnni";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

Isa CpuFeatures::Best() const {
  if (amx_int8 && amx_bf16 && avx512_vnni) return Isa::kAmx;
  if (avx512_vnni) return Isa::kAvx512Vnni;
  if (avx2) return Isa::kAvx2;
  return Isa::kRef;
}

const CpuFeatures& HostCpuFeatures() {
  static const CpuFeatures features = Detect();
  return features;
}

absl::StatusOr<Isa> ChooseIsa() {
  const char* forced = std::getenv("FORCE_ISA");
  return ChooseIsa(HostCpuFeatures(), forced == nullptr ? "" : forced);
}

absl::StatusOr<Isa> ChooseIsa(const CpuFeatures& features, std::string_view forced) {
  const Isa best = features.Best();
  if (forced.empty()) return best;
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx}) {
    if (forced != ToString(isa)) continue;
    if (isa > best) {
      return InvalidArgument("FORCE_ISA={}: this CPU ({}) has at most {}", forced, features.name,
                             ToString(best));
    }
    return isa;
  }
  return InvalidArgument("FORCE_ISA={}: want ref, avx2, avx512vnni or amx", forced);
}

}  // namespace nibble
