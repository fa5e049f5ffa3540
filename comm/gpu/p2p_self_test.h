// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sums whose bits are known, for devices to prove themselves with: there are machines whose peer
// access says yes and moves other bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "comm/all_reduce.h"

namespace nibble::comm {

inline constexpr int64_t kSelfTestRows = 3;
inline constexpr int64_t kSelfTestValues = kSelfTestRows * 4136;  // rows with a tail

// Both algorithms uncompressed, and each codec that the policy may use.
std::vector<AllReduceChoice> SelfTestChoices(const AllReducePolicy& policy);
// A rank's values [kSelfTestRows, row_size].
std::vector<float> SelfTestInput(int rank, int64_t row_size);
// UNAVAILABLE, saying where, unless `sums` are what the CPU's codec makes of all ranks' inputs.
absl::Status CheckSelfTest(const AllReduceChoice& choice, int num_ranks, int64_t row_size,
                           const std::vector<float>& sums);

}  // namespace nibble::comm
