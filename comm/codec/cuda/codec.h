// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// comm/codec/codec.h on a device: the same bytes and the same floats, from and to rows in device
// memory that are float32 or bf16.
//
//   NIBBLE_RETURN_IF_ERROR(cuda::Encode(desc, {.data = x, .groups = {hidden, 128}}, 0, count,
//                                       codes, stream));
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/dtype.h"
#include "base/status.h"
#include "comm/codec/codec.h"

namespace nibble::comm::cuda {

// Rows of values that are coded or decoded into.
struct DeviceRows {
  void* data = nullptr;        // [num_rows, groups.row_size], contiguous; 4-byte aligned
  DType dtype = DType::kBf16;  // f32 or bf16, which decoding rounds to
  RowGroups groups;
};

inline constexpr int kMaxPieces = 64;
// Of a call, so that a group's number fits 32 bits.
inline constexpr int64_t kMaxGroups = (int64_t{1} << 31) - 1;

// All are enqueued on `stream`. INVALID_ARGUMENT for a codec that Validate refuses, groups of
// another size than the codec's, more groups than kMaxGroups, or codes that are not 16-byte
// aligned.

// Codes of groups [first, first + count) to `out` [EncodedBytes(desc, count)], all bytes of it.
absl::Status Encode(const CodecDesc& desc, const DeviceRows& rows, int64_t first, int64_t count,
                    uint8_t* out, cudaStream_t stream);
// The sum of `pieces` [num_pieces <= kMaxPieces] (an array on the host, of device memory with any
// bytes) in order in float32, into the rows.
absl::Status DecodeSum(const CodecDesc& desc, const DeviceRows& rows, const uint8_t* const* pieces,
                       int num_pieces, int64_t first, int64_t count, cudaStream_t stream);
// The sum's codes; `out` may be one of the pieces.
absl::Status ReduceEncoded(const CodecDesc& desc, const uint8_t* const* pieces, int num_pieces,
                           int64_t count, uint8_t* out, cudaStream_t stream);

}  // namespace nibble::comm::cuda
