// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Attention of some query rows over one tile of keys, once per instruction set. Included by files
// compiled for one instruction set: no library headers that emit code.
//
// A tile is kTileKeys positions that start at an absolute multiple of kTileKeys, cut into strips of
// kStripKeys: a vector of scores. A row is one query head of one token. What a row computes depends
// on the row, the tile's keys and its own key range alone, never on the other rows: every score is
// one chain of fused multiply-adds over head_dim in ascending order, every output component one
// chain over the row's keys in ascending order.
#pragma once

#include <cstdint>

namespace nibble::kernels {

inline constexpr int64_t kTileKeys = 64;
inline constexpr int64_t kStripKeys = 16;
inline constexpr int64_t kTileStrips = kTileKeys / kStripKeys;
// Packed values and outputs are padded to whole vectors of the widest instruction set.
inline constexpr int64_t kPadColumns = 16;

enum class KvElement { kF32, kBf16, kF16, kI8 };

// One position's key and value in the cache.
struct KvRow {
  const void* key = nullptr;    // component d is element d * key_stride
  const void* value = nullptr;  // head_dim elements
};

struct PackTileArgs {
  KvElement element = KvElement::kF32;
  int64_t head_dim = 0;
  int64_t padded_dim = 0;  // head_dim rounded up to kPadColumns
  int64_t key_begin = 0;   // positions [key_begin, key_end) of the tile are packed
  int64_t key_end = 0;
  int64_t key_stride = 0;
  // Aligned runs of kStripKeys positions are neighbours in the cache: whole strips of keys are
  // read around the range above.
  bool whole_strips = false;
  const KvRow* rows = nullptr;  // [kTileKeys]
  float* keys = nullptr;        // [head_dim, kTileKeys]
  float* values = nullptr;      // [kTileKeys, padded_dim]: padding is 0
};

// The keys and values of kStripKeys positions, packed or where they lie in the cache.
struct KvStrip {
  const void* keys = nullptr;    // component d of position i: element d * key_stride + i
  const void* values = nullptr;  // component d of position i: element i * value_stride + d
  // [kStripKeys]: what keys and values are to be multiplied by; null: 1.
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
};

// Softmax so far of each row: sum = sum_j exp(score_j - max), acc = sum_j exp(score_j - max) V_j.
// Empty: max = -inf, sum = 0, acc = 0.
struct AttentionState {
  float* max = nullptr;  // [num_rows]
  float* sum = nullptr;  // [num_rows]
  float* acc = nullptr;  // [num_rows, padded_dim]
};

struct AttendTileArgs {
  KvElement element = KvElement::kF32;
  int64_t num_rows = 0;
  int64_t head_dim = 0;
  int64_t padded_dim = 0;
  const float* q = nullptr;  // [num_rows, head_dim]
  float scale = 1.0F;
  // All strips can be read, also those that no row sees.
  const KvStrip* strips = nullptr;  // [kTileStrips]
  int64_t key_stride = 0;
  int64_t value_stride = 0;
  // Strips that are read next, to be fetched meanwhile; null: none.
  const KvStrip* next = nullptr;  // [kTileStrips]
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
