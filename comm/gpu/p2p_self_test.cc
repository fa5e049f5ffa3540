// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/p2p_self_test.h"

#include <algorithm>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/float16.h"
#include "comm/codec/codec.h"
#include "comm/gpu/p2p_plan.h"

namespace nibble::comm {

namespace {

float RoundedTo(DType dtype, float x) { return dtype == DType::kBf16 ? ToFloat(ToBFloat16(x)) : x; }

}  // namespace

std::vector<SelfTestCase> SelfTestCases(const AllReducePolicy& policy) {
  std::vector<SelfTestCase> cases;
  const auto add = [&](const AllReduceChoice& choice, bool exact) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      const SelfTestCase test = {choice.algorithm,
                                 DeviceCodec(choice.codec, exact, dtype == DType::kBf16), dtype};
      if (std::find(cases.begin(), cases.end(), test) == cases.end()) cases.push_back(test);
    }
  };
  for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
    add({.algorithm = algorithm}, /*exact=*/true);
  }
  for (const AllReduceChoice& choice : policy.choices) add(choice, /*exact=*/false);
  return cases;
}

std::vector<float> SelfTestInput(int rank, int64_t row_size, DType dtype) {
  std::vector<float> values(static_cast<size_t>(kSelfTestRows * row_size));
  auto state = static_cast<uint32_t>(rank + 1);
  for (float& x : values) {
    state = state * 1664525U + 1013904223U;
    x = RoundedTo(dtype, static_cast<float>(static_cast<int32_t>(state)) * 0x1p-30F);
  }
  return values;
}

absl::Status CheckSelfTest(const SelfTestCase& test, int num_ranks, int64_t row_size,
                           const std::vector<float>& sums) {
  const CodecDesc& codec = test.codec;
  const RowGroups groups = {row_size, codec.group_size};
  const int64_t count = kSelfTestRows * groups.groups_per_row();
  const Isa isa = HostCpuFeatures().Best();
  std::vector<AlignedBuffer<uint8_t>> codes;
  std::vector<const uint8_t*> pieces;
  for (int r = 0; r < num_ranks; ++r) {
    const std::vector<float> input = SelfTestInput(r, row_size, test.dtype);
    codes.emplace_back(static_cast<size_t>(EncodedBytes(codec, count)));
    Encode(codec, groups, input.data(), 0, count, codes.back().data(), isa);
    pieces.push_back(codes.back().data());
  }
  ReduceEncoded(codec, pieces.data(), num_ranks, count, codes[0].data(), isa);
  std::vector<float> expected(sums.size());
  Decode(codec, groups, codes[0].data(), 0, count, expected.data(), isa);
  for (size_t i = 0; i < sums.size(); ++i) {
    const float right = RoundedTo(test.dtype, expected[i]);
    if (std::memcmp(&sums[i], &right, sizeof(float)) == 0) continue;
    return Unavailable("the {} {} all-reduce of {} devices gave {} where {} is right ({} value {})",
                       ToString(test.algorithm), ToString(codec), num_ranks, sums[i], right,
                       ToString(test.dtype), i);
  }
  return absl::OkStatus();
}

}  // namespace nibble::comm
