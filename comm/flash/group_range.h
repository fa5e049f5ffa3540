// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How the groups of a message are divided among ranks and in time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "comm/codec/codec.h"

namespace nibble::comm {

// Groups begin..end - 1.
struct GroupRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const GroupRange&, const GroupRange&) = default;
};

// What owner `idx` of `count` has of `range`: as even as groups allow, some or all may be empty.
inline GroupRange StripeOf(const GroupRange& range, int idx, int count) {
  // Quotient and remainder apart, so that nothing overflows.
  const int64_t each = range.size() / count;
  const int64_t rest = range.size() % count;
  const auto begin_of = [&](int64_t i) { return range.begin + each * i + rest * i / count; };
  return {begin_of(idx), begin_of(idx + 1)};
}

// Piece `idx` of `range`, cut into pieces of `size` groups; empty beyond its end.
inline GroupRange ChunkOf(const GroupRange& range, int64_t idx, int64_t size) {
  const int64_t begin = std::min(range.begin + idx * size, range.end);
  return {begin, std::min(begin + size, range.end)};
}

// Where group `idx` begins in the rows' values, which are contiguous; of `idx` = all groups: where
// the values end.
inline int64_t FirstValue(const RowGroups& groups, int64_t idx) {
  const int64_t per_row = groups.groups_per_row();
  return per_row == 0 ? 0 : idx / per_row * groups.row_size + idx % per_row * groups.group_size;
}

}  // namespace nibble::comm
