// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/all_reduce.h"

#include <limits>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/choose_policy.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;
using Mode = AllReduceOptions::Mode;

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

TEST(ParseAllReduce, Names) {
  EXPECT_EQ(ParseAllReduce("auto")->mode, Mode::kAuto);
  EXPECT_EQ(ParseAllReduce("none")->mode, Mode::kNone);
  for (const auto& [name, bits] : {std::pair{"float32", 32},
                                   {"bf16", 16},
                                   {"int8", 8},
                                   {"int6", 6},
                                   {"int5", 5},
                                   {"int4", 4},
                                   {"int3", 3},
                                   {"int2", 2}}) {
    const absl::StatusOr<AllReduceOptions> options = ParseAllReduce(name);
    ASSERT_TRUE(options.ok()) << name;
    EXPECT_EQ(options->mode, Mode::kFixed);
    EXPECT_EQ(options->codec.bits, bits);
  }
  for (const char* name : {"", "int7", "INT8", "auto ", "int"}) {
    const absl::Status status = ParseAllReduce(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("int4"));
  }
}

AllReducePolicy Example() {
  return {{{65536, Algorithm::kOneShot, {.bits = 16}},
           {1 << 20, Algorithm::kTwoShot, {.bits = 8, .group_size = 64}},
           {kNoLimit,
            Algorithm::kTwoShot,
            {.bits = 4, .group_size = 32, .scale = ScaleFormat::kLog2Int8, .spikes = true}}}};
}

// Every size up to 2^40 by powers and their neighbours has exactly one choice.
void ExpectTotal(const AllReducePolicy& policy) {
  ASSERT_TRUE(policy.Validate().ok()) << policy.Validate();
  for (int shift = 0; shift <= 40; ++shift) {
    for (const int64_t bytes :
         {(int64_t{1} << shift) - 1, int64_t{1} << shift, (int64_t{1} << shift) + 1}) {
      const AllReduceChoice& choice = policy.For(bytes);
      EXPECT_LE(bytes, choice.max_bytes);
      if (&choice != policy.choices.data()) {
        EXPECT_GT(bytes, (&choice - 1)->max_bytes);
      }
    }
  }
  EXPECT_EQ(&policy.For(kNoLimit), &policy.choices.back());
}

TEST(AllReducePolicy, IsTotalOverAllSizes) {
  ExpectTotal(Example());
  for (const int bits : {32, 16, 8, 6, 5, 4, 3, 2}) {
    for (int size = 1; size <= 64; ++size) {
      ExpectTotal(HostPolicy({.bits = bits}, size));
      if (size > 1) ExpectTotal(NetworkPolicy({.bits = bits}, size));
    }
  }
}

TEST(AllReducePolicy, ToStringSaysUpToWhat) {
  EXPECT_EQ(ToString(Example()), "up to 64 KiB: one-shot " + ToString(CodecDesc{.bits = 16}) +
                                     "; up to 1 MiB: two-shot " +
                                     ToString(Example().choices[1].codec) + "; above: two-shot " +
                                     ToString(Example().choices[2].codec));
}

TEST(AllReducePolicy, SerializedAndParsed) {
  for (const AllReducePolicy& policy :
       {Example(), HostPolicy({}, 4), NetworkPolicy({.bits = 3, .rotation = true}, 3)}) {
    const absl::StatusOr<AllReducePolicy> parsed = ParsePolicy(Serialize(policy));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->choices, policy.choices);
  }
}

TEST(AllReducePolicy, WhatIsNoneIsRefused) {
  const std::string good = Serialize(Example());
  const std::string last = "9223372036854775807,two-shot,8,128,bf16,-,-";
  ASSERT_TRUE(ParsePolicy(last).ok());
  for (const std::string& text : {
           std::string(),
           std::string(";"),
           good + ";" + last,
           good.substr(0, good.size() - 1),
           "100,two-shot,8,128,bf16,-,-" + std::string(),                  // ends at 100
           "5,one-shot,8,128,bf16,-,-;5,one-shot,8,128,bf16,-,-;" + last,  // does not rise
           "-5,one-shot,8,128,bf16,-,-;" + last,
           std::string("9223372036854775808,two-shot,8,128,bf16,-,-"),
           std::string("9223372036854775807,three-shot,8,128,bf16,-,-"),
           std::string("9223372036854775807,two-shot,7,128,bf16,-,-"),
           std::string("9223372036854775807,two-shot,8,127,bf16,-,-"),
           std::string("9223372036854775807,two-shot,8,128,fp8,-,-"),
           std::string("9223372036854775807,two-shot,8,128,bf16,-"),
           last + ",",
           std::string(100'000, ';'),
       }) {
    EXPECT_EQ(ParsePolicy(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace nibble::comm
