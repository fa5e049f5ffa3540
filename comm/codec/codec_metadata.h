// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a group has beside its codes, in and out of the bytes that travel. Included by files
// compiled for one instruction set: everything here is static.
#pragma once

#include <cstdint>

#include "comm/codec/codec_kernels.h"
#include "comm/codec/codec_scale.h"

namespace nibble::comm {

static inline void StoreScale(const GroupLayout& layout, uint16_t code, int zero, int64_t group,
                              uint8_t* out) {
  if (layout.log2_scales) {
    out[layout.scales + group] = static_cast<uint8_t>(code);
  } else {
    __builtin_memcpy(out + layout.scales + 2 * group, &code, 2);
  }
  out[layout.zeros + group] = static_cast<uint8_t>(zero);
}

static inline float LoadScale(const GroupLayout& layout, const uint8_t* in, int64_t group) {
  if (layout.log2_scales) return ScaleOfCode(in[layout.scales + group], true);
  uint16_t code;
  __builtin_memcpy(&code, in + layout.scales + 2 * group, 2);
  return ScaleOfCode(code, false);
}

struct Spike {
  float value;
  int index;
};

// which: 0 for the least, 1 for the greatest value.
static inline void StoreSpikeCode(const GroupLayout& layout, uint16_t code, int index,
                                  int64_t group, int which, uint8_t* out) {
  __builtin_memcpy(out + layout.spike_values + 4 * group + 2 * which, &code, 2);
  out[layout.spike_indices + 2 * group + which] = static_cast<uint8_t>(index);
}
static inline void StoreSpike(const GroupLayout& layout, Spike spike, int64_t group, int which,
                              uint8_t* out) {
  StoreSpikeCode(layout, SpikeCode(spike.value), spike.index, group, which, out);
}
static inline void StoreNanSpikes(const GroupLayout& layout, int64_t group, uint8_t* out) {
  StoreSpikeCode(layout, kNanBf16, 0, group, 0, out);
  StoreSpikeCode(layout, kNanBf16, 0, group, 1, out);
}

// Of what may come from a peer: inside the group whatever the byte says.
static inline Spike LoadSpike(const GroupLayout& layout, const uint8_t* in, int64_t group,
                              int which) {
  uint16_t code;
  __builtin_memcpy(&code, in + layout.spike_values + 4 * group + 2 * which, 2);
  return {SpikeOfCode(code), in[layout.spike_indices + 2 * group + which] % layout.group_size};
}

}  // namespace nibble::comm
