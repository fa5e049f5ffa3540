// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What travels as one message: the codes of some neighbouring groups, in slices that threads code
// apart from each other and that fit a core's nearest caches. Slice i begins at i * SliceBytes.
#pragma once

#include <cstdint>
#include <vector>

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "comm/codec/codec.h"
#include "comm/flash/group_range.h"

namespace nibble::comm {

class ChunkCoder {
 public:
  // `data`: the rows whose groups are meant.
  ChunkCoder(const CodecDesc& codec, const RowGroups& groups, float* data, Isa isa,
             ThreadPool* pool);

  // Of a message of so many groups.
  int64_t Bytes(int64_t num_groups) const;
  int64_t slice_groups() const { return slice_groups_; }

  // `out` [Bytes(range.size())], 64-byte aligned as all messages here.
  void EncodeChunk(const GroupRange& range, uint8_t* out) const;
  void DecodeChunk(const GroupRange& range, const uint8_t* in) const;
  // The ranks' codes of `range` summed in the order of `pieces`, coded again to `out`, which is
  // decoded into the rows.
  void ReduceChunk(const GroupRange& range, const std::vector<const uint8_t*>& pieces,
                   uint8_t* out) const;

 private:
  // body(groups of the slice, its byte offset)
  template <typename Body>
  void ForSlices(const GroupRange& range, const Body& body) const;

  CodecDesc codec_;
  RowGroups groups_;
  float* data_;
  Isa isa_;
  ThreadPool* pool_;
  int64_t slice_groups_;
  int64_t slice_bytes_;
};

}  // namespace nibble::comm
