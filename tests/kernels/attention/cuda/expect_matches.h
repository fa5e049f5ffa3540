// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Comparing a device's attention with the reference, within bounds that are derived here.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/attention/cuda/device_problem.h"
#include "tests/testing/compare.h"

namespace nibble::testing {

// What a result may be off by, with A = sum_j weight_j |v_j| of the same head and token:
// - Scores and sums in float32: as tests/kernels/attention/paged_attention_test.cc derives it, with
//   2 more units in the last place for exp2.
// - Tensor cores take weights as bfloat16, which is off by up to 2^-9 of each. The sum of weights
// is
//   of the rounded ones, so the output moves by sum_j weight_j e_j (v_j - out) <= 2^-9 * 2 A; with
//   int8 the weight times the value's scale is rounded, the sum's weight apart from it: twice that.
// - A bfloat16 output is off by 2^-9 of itself, which is at most A.
// - FlashInfer sums the weights before it rounds them, and keeps partial results of split contexts
//   as bfloat16: 2^-9 A each.
inline double Bound(const AttentionShape& shape, const DeviceOptions& options, double magnitude) {
  const double exact = 6e-8 * (4.0 * static_cast<double>(shape.head_dim) + 66.0) * 4.0;
  if (options.activation == DType::kF32) return exact;
  constexpr double kHalfUlp = 0x1p-9;
  double weights = shape.dtype == DType::kI8 ? 4.0 : 2.0;
  if (options.backend != kernels::cuda::AttentionBackend::kNibble) weights += 2.0;
  return exact + kHalfUlp * (weights + 1.0) * magnitude * 1.01;
}

inline std::string Describe(const AttentionShape& shape, const Chunk& chunk) {
  return "heads " + std::to_string(shape.num_heads) + "/" + std::to_string(shape.num_kv_heads) +
         " head_dim " + std::to_string(shape.head_dim) + " block_size " +
         std::to_string(shape.block_size) + " window " + std::to_string(shape.sliding_window) +
         " " + std::string(ToString(shape.dtype)) + " chunk [" + std::to_string(chunk.begin) +
         ", " + std::to_string(chunk.end) + ")";
}

// Chunks name sequences by their place in `sequences`.
struct Piece {
  size_t sequence;
  int64_t begin;
  int64_t end;
};
inline std::vector<Chunk> Chunks(const std::vector<SequenceData>& sequences,
                                 const std::vector<Piece>& pieces) {
  std::vector<Chunk> chunks;
  for (const Piece& piece : pieces) {
    chunks.push_back({&sequences[piece.sequence], piece.begin, piece.end});
  }
  return chunks;
}

inline void ExpectMatches(const AttentionShape& shape, const std::vector<int64_t>& lengths,
                          const std::vector<Piece>& pieces, const DeviceOptions& options,
                          uint32_t seed, ThreadPool* pool) {
  std::vector<SequenceData> sequences;
  std::vector<SequenceData> magnitudes;  // with |v|
  for (const int64_t length : lengths) {
    sequences.push_back(Rounded(MakeSequence(shape, length, ++seed), options.activation));
    magnitudes.push_back(sequences.back());
    for (float& v : magnitudes.back().v) v = std::abs(v);
  }
  const auto chunks = Chunks(sequences, pieces);
  const auto expected = Attend(shape, chunks, Isa::kRef, pool);
  const auto magnitude = Attend(shape, Chunks(magnitudes, pieces), Isa::kRef, pool);
  const auto actual = AttendOnDevice(shape, chunks, options, pool, seed);
  const int64_t columns = shape.num_heads * shape.head_dim;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const int64_t rows = chunks[i].end - chunks[i].begin;
    EXPECT_TRUE(AllWithin<float>(
        {actual[i].data(), rows, columns, columns}, {expected[i].data(), rows, columns, columns},
        [&](int64_t row, int64_t column) {
          return Bound(
              shape, options,
              static_cast<double>(magnitude[i][static_cast<size_t>(row * columns + column)]));
        }))
        << Describe(shape, chunks[i]);
  }
}

}  // namespace nibble::testing
