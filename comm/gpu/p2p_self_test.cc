// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/p2p_self_test.h"

#include <algorithm>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "comm/codec/codec.h"

namespace nibble::comm {

std::vector<AllReduceChoice> SelfTestChoices(const AllReducePolicy& policy) {
  std::vector<AllReduceChoice> choices = {
      {.algorithm = Algorithm::kOneShot, .codec = {.bits = 32, .group_size = 32}},
      {.algorithm = Algorithm::kTwoShot, .codec = {.bits = 32, .group_size = 32}}};
  for (const AllReduceChoice& choice : policy.choices) {
    const AllReduceChoice tested = {.algorithm = choice.algorithm, .codec = choice.codec};
    if (choice.codec.is_integer() &&
        std::find(choices.begin(), choices.end(), tested) == choices.end()) {
      choices.push_back(tested);
    }
  }
  return choices;
}

std::vector<float> SelfTestInput(int rank, int64_t row_size) {
  std::vector<float> values(static_cast<size_t>(kSelfTestRows * row_size));
  auto state = static_cast<uint32_t>(rank + 1);
  for (float& x : values) {
    state = state * 1664525U + 1013904223U;
    x = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-30F;
  }
  return values;
}

absl::Status CheckSelfTest(const AllReduceChoice& choice, int num_ranks, int64_t row_size,
                           const std::vector<float>& sums) {
  const CodecDesc& codec = choice.codec;
  const RowGroups groups = {row_size, codec.group_size};
  const int64_t count = kSelfTestRows * groups.groups_per_row();
  const Isa isa = HostCpuFeatures().Best();
  std::vector<AlignedBuffer<uint8_t>> codes;
  std::vector<const uint8_t*> pieces;
  for (int r = 0; r < num_ranks; ++r) {
    const std::vector<float> input = SelfTestInput(r, row_size);
    codes.emplace_back(static_cast<size_t>(EncodedBytes(codec, count)));
    Encode(codec, groups, input.data(), 0, count, codes.back().data(), isa);
    pieces.push_back(codes.back().data());
  }
  ReduceEncoded(codec, pieces.data(), num_ranks, count, codes[0].data(), isa);
  std::vector<float> expected(sums.size());
  Decode(codec, groups, codes[0].data(), 0, count, expected.data(), isa);
  for (size_t i = 0; i < sums.size(); ++i) {
    if (std::memcmp(&sums[i], &expected[i], sizeof(float)) == 0) continue;
    return Unavailable("the {} {} all-reduce of {} devices gave {} where {} is right (value {})",
                       ToString(choice.algorithm) == "one-shot" ? "one-shot" : "two-shot",
                       ToString(codec), num_ranks, sums[i], expected[i], i);
  }
  return absl::OkStatus();
}

}  // namespace nibble::comm
