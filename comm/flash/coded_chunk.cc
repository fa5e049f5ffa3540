// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/flash/coded_chunk.h"

#include "base/check.h"

namespace nibble::comm {
namespace {

// 32 KiB of float32, with the codes of some ranks well inside a core's second-level cache.
constexpr int64_t kSliceValues = 8192;

}  // namespace

ChunkCoder::ChunkCoder(const CodecDesc& codec, const RowGroups& groups, float* data, Isa isa,
                       ThreadPool* pool)
    : codec_(codec),
      groups_(groups),
      data_(data),
      isa_(isa),
      pool_(pool),
      slice_groups_(kSliceValues / codec.group_size),
      slice_bytes_(EncodedBytes(codec, slice_groups_)) {
  NIBBLE_CHECK_EQ(codec.group_size, groups.group_size);
}

int64_t ChunkCoder::Bytes(int64_t num_groups) const {
  const int64_t rest = num_groups % slice_groups_;
  return num_groups / slice_groups_ * slice_bytes_ + (rest > 0 ? EncodedBytes(codec_, rest) : 0);
}

template <typename Body>
void ChunkCoder::ForSlices(const GroupRange& range, const Body& body) const {
  const int64_t num_slices = (range.size() + slice_groups_ - 1) / slice_groups_;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(ChunkOf(range, i, slice_groups_), i * slice_bytes_);
  };
  if (pool_ == nullptr) return run(0, num_slices);
  pool_->ParallelFor(num_slices, 1, run);
}

void ChunkCoder::EncodeChunk(const GroupRange& range, uint8_t* out) const {
  ForSlices(range, [&](const GroupRange& slice, int64_t offset) {
    Encode(codec_, groups_, data_, slice.begin, slice.size(), out + offset, isa_);
  });
}

void ChunkCoder::DecodeChunk(const GroupRange& range, const uint8_t* in) const {
  ForSlices(range, [&](const GroupRange& slice, int64_t offset) {
    Decode(codec_, groups_, in + offset, slice.begin, slice.size(), data_, isa_);
  });
}

void ChunkCoder::ReduceChunk(const GroupRange& range, const std::vector<const uint8_t*>& pieces,
                             uint8_t* out) const {
  ForSlices(range, [&](const GroupRange& slice, int64_t offset) {
    std::vector<const uint8_t*> slice_pieces(pieces);
    for (const uint8_t*& piece : slice_pieces) piece += offset;
    ReduceEncoded(codec_, slice_pieces.data(), static_cast<int>(slice_pieces.size()), slice.size(),
                  out + offset, isa_);
    Decode(codec_, groups_, out + offset, slice.begin, slice.size(), data_, isa_);
  });
}

}  // namespace nibble::comm
