// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/amx_probe.h"

#include <sched.h>
#include <time.h>

#include <cstdint>
#include <cstring>

namespace nibble {

bool AmxTilesSurviveSwitches() {
  constexpr int kRounds = 40;
  constexpr int64_t kRowBytes = 64;
  constexpr int64_t kRows = 16;
  // Operand of LDTILECFG: palette 1, tile 0 of 16 rows of 64 bytes (a 16-bit field), no other.
  alignas(64) uint8_t config[64] = {};
  config[0] = 1;
  config[16] = kRowBytes;
  config[48] = kRows;
  alignas(64) uint8_t content[kRows * kRowBytes];
  alignas(64) uint8_t stored[kRows * kRowBytes];
  for (int64_t i = 0; i < kRows * kRowBytes; ++i) content[i] = static_cast<uint8_t>(i * 7 + 1);

  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm0" : : "r"(content), "r"(kRowBytes) : "memory");
  bool kept = true;
  for (int round = 0; round < kRounds && kept; ++round) {
    // Sleep so that the CPU itself may be given away, yield to threads that wait for it.
    const timespec pause = {.tv_sec = 0, .tv_nsec = 20000};
    nanosleep(&pause, nullptr);
    sched_yield();
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(stored), "r"(kRowBytes) : "memory");
    kept = std::memcmp(stored, content, sizeof(content)) == 0;
  }
  __asm__ volatile("tilerelease" : : : "memory");
  return kept;
}

}  // namespace nibble
