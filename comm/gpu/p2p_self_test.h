// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sums whose bits are known, for devices to prove themselves with: there are machines whose peer
// access says yes and moves other bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "comm/all_reduce.h"

namespace nibble::comm {

inline constexpr int64_t kSelfTestRows = 3;
inline constexpr int64_t kSelfTestValues = kSelfTestRows * 4136;  // rows with a tail

// A sum of rows of one type by a codec as messages of that type take it (DeviceCodec).
struct SelfTestCase {
  Algorithm algorithm = Algorithm::kTwoShot;
  CodecDesc codec;
  DType dtype = DType::kF32;

  friend bool operator==(const SelfTestCase&, const SelfTestCase&) = default;
};

// What messages of either type may take: both algorithms uncompressed, and all that the policy has.
std::vector<SelfTestCase> SelfTestCases(const AllReducePolicy& policy);
// A rank's values [kSelfTestRows, row_size], which are dtype's.
std::vector<float> SelfTestInput(int rank, int64_t row_size, DType dtype);
// UNAVAILABLE, saying where, unless `sums` are what the CPU's codec makes of all ranks' inputs.
absl::Status CheckSelfTest(const SelfTestCase& test, int num_ranks, int64_t row_size,
                           const std::vector<float>& sums);

}  // namespace nibble::comm
