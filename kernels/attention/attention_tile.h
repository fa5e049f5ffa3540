// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Attention of some query rows over one tile of keys, once per instruction set. Included by files
// compiled for one instruction set: no library headers that emit code.
//
// A tile is kTileKeys positions that start at an absolute multiple of kTileKeys. A row is one query
// head of one token. What a row computes depends on the row, the tile's keys and its own key range
// alone, never on the other rows: every score is one chain of fused multiply-adds over head_dim in
// ascending order, every output component one chain over the row's keys in ascending order.
#pragma once

#include <cstdint>

namespace nibble::kernels {

inline constexpr int64_t kTileKeys = 64;
// Rows of values and outputs are padded to whole vectors of the widest instruction set.
inline constexpr int64_t kPadColumns = 16;

enum class KvElement { kF32, kBf16, kF16 };

struct PackTileArgs {
  KvElement element = KvElement::kF32;
  int64_t head_dim = 0;
  int64_t padded_dim = 0;  // head_dim rounded up to kPadColumns
  // Keys [key_begin, key_end) of the tile are read, and up to a vector's width around them; each
  // row has head_dim elements.
  int64_t key_begin = 0;
  int64_t key_end = 0;
  const void* const* key_rows = nullptr;    // [kTileKeys]
  const void* const* value_rows = nullptr;  // [kTileKeys]
  float* keys = nullptr;                    // [head_dim, kTileKeys]: transposed
  float* values = nullptr;                  // [kTileKeys, padded_dim]: padding is 0
};

// Softmax so far of each row: sum = sum_j exp(score_j - max), acc = sum_j exp(score_j - max) V_j.
// Empty: max = -inf, sum = 0, acc = 0.
struct AttentionState {
  float* max = nullptr;  // [num_rows]
  float* sum = nullptr;  // [num_rows]
  float* acc = nullptr;  // [num_rows, padded_dim]
};

struct AttendTileArgs {
  int64_t num_rows = 0;
  int64_t head_dim = 0;
  int64_t padded_dim = 0;
  const float* q = nullptr;  // [num_rows, head_dim]
  float scale = 1.0F;
  const float* keys = nullptr;    // as packed
  const float* values = nullptr;  // as packed
  // [num_rows]: row r sees keys [key_begin[r], key_end[r]) of the tile; an empty range leaves its
  // state alone.
  const int32_t* key_begin = nullptr;
  const int32_t* key_end = nullptr;
  AttentionState state;
};

namespace avx2 {
void PackTile(const PackTileArgs& args);
void AttendTile(const AttendTileArgs& args);
}  // namespace avx2
namespace avx512vnni {
void PackTile(const PackTileArgs& args);
void AttendTile(const AttendTileArgs& args);
}  // namespace avx512vnni

}  // namespace nibble::kernels
