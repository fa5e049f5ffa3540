// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// 4-bit weights on disk as GPTQ and AWQ tools write them, for a module of weights [n, k] in G
// groups; w = scale * (code - zero). Nibble i of a word is its bits 4i..4i+3.
//
//   GPTQ  NAME.qweight  int32 [k / 8, n]   nibble i of word (r, column) is k = 8r + i
//         NAME.qzeros   int32 [G, n / 8]   nibble i of word (g, c) is output channel 8c + i;
//                                          version 1 stores the zero point less 1, modulo 16
//         NAME.scales   float [G, n]
//         NAME.g_idx    int32 [k]          the group of each input channel; optional
//   AWQ   NAME.qweight  int32 [k, n / 8]   nibble i of word (r, c) is output channel
//         NAME.qzeros   int32 [G, n / 8]   8c + {0, 2, 4, 6, 1, 3, 5, 7}[i]
//         NAME.scales   float [G, n]
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/channel_order.h"
#include "engine/model/quantization_config.h"
#include "engine/model/safetensors.h"
#include "engine/model/shard.h"

namespace nibble::engine {

// Reads the share of a module of layout kGptq or kAwq. Zero points that are all 8 are left out: the
// weight is symmetric. NOT_FOUND or INVALID_ARGUMENT, naming the tensor, when one is missing, of
// another shape or type, or a scale is not finite. UNIMPLEMENTED, naming the tensor, for act-order
// where the share has not all columns: any of them may be of any group. Without act-order a g_idx
// of zeros says nothing: some tools write one instead of none. REQUIRES: columns that begin and end
// with groups (CheckOnGroups).
absl::StatusOr<StoredInt4> ReadQweight(const Checkpoint& checkpoint, std::string_view module,
                                       const MatrixShare& share, const WeightScheme& scheme,
                                       ThreadPool* pool);

}  // namespace nibble::engine
