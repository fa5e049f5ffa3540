// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The kernels of the all-reduce over mapped memory, with all ranks on one device: every rank gets
// the bits that the CPU's codec gives, whatever ranks are late; and the protocol's parts are
// needed.

#include "tests/comm/gpu/one_device.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cuda/device.h"
#include "base/float16.h"
#include "comm/gpu/p2p_link.h"
#include "tests/comm/codec/codec_cases.h"

namespace nibble::comm {
namespace {

using ::nibble::testing::Random;

class OneDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto devices = gpu::ListDevices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (devices->empty()) GTEST_SKIP() << "no CUDA device";
  }
};

std::vector<float> RoundedTo(DType dtype, std::vector<float> values) {
  for (float& x : values) {
    if (dtype == DType::kBf16) x = ToFloat(ToBFloat16(x));
  }
  return values;
}

OneDeviceMessage RandomMessage(const CodecDesc& codec, DType dtype, Algorithm algorithm,
                               int64_t num_rows, int64_t row_size, int num_ranks, Random* random) {
  OneDeviceMessage message = {.codec = codec,
                              .dtype = dtype,
                              .num_rows = num_rows,
                              .row_size = row_size,
                              .algorithm = algorithm};
  for (int r = 0; r < num_ranks; ++r) {
    message.values.push_back(
        RoundedTo(dtype, HardValues(random, num_rows * row_size, /*faults=*/true)));
  }
  return message;
}

// By the CPU's codec: what comm/flash computes.
std::vector<float> Expected(const OneDeviceMessage& message) {
  const RowGroups groups = {message.row_size, message.codec.group_size};
  const int64_t count = message.num_rows * groups.groups_per_row();
  std::vector<std::vector<uint8_t>> codes;
  std::vector<const uint8_t*> pieces;
  for (const std::vector<float>& values : message.values) {
    codes.emplace_back(static_cast<size_t>(EncodedBytes(message.codec, count)));
    Encode(message.codec, groups, values.data(), 0, count, codes.back().data(), Isa::kRef);
  }
  for (const auto& code : codes) pieces.push_back(code.data());
  std::vector<uint8_t> sum(codes[0].size());
  ReduceEncoded(message.codec, pieces.data(), static_cast<int>(pieces.size()), count, sum.data(),
                Isa::kRef);
  std::vector<float> result(message.values[0].size());
  Decode(message.codec, groups, sum.data(), 0, count, result.data(), Isa::kRef);
  return RoundedTo(message.dtype, result);
}

// Of all ranks; NaN has no bits to compare.
::testing::AssertionResult AllHave(const OneDeviceMessage& message,
                                   const std::vector<float>& expected) {
  for (size_t r = 0; r < message.values.size(); ++r) {
    for (size_t i = 0; i < expected.size(); ++i) {
      const float value = message.values[r][i];
      if (std::isnan(value) && std::isnan(expected[i])) continue;
      if (std::memcmp(&value, &expected[i], sizeof(float)) == 0) continue;
      return ::testing::AssertionFailure()
             << "rank " << r << ", value " << i << ": " << value << ", the CPU has " << expected[i];
    }
  }
  return ::testing::AssertionSuccess();
}

// Number of messages with a value that is not the CPU's.
int NumWrong(const OneDeviceOptions& options, std::vector<OneDeviceMessage> messages) {
  std::vector<std::vector<float>> expected;
  for (const OneDeviceMessage& message : messages) expected.push_back(Expected(message));
  const absl::Status status = RunOnOneDevice(options, &messages, nullptr);
  EXPECT_TRUE(status.ok()) << status;
  int num_wrong = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    num_wrong += AllHave(messages[i], expected[i]) ? 0 : 1;
  }
  return num_wrong;
}

// Every codec and number of ranks, both algorithms, rows with and without tails.
TEST_F(OneDeviceTest, EveryRankHasTheCpusBits) {
  Random random(11);
  int which = 0;
  for (const CodecDesc& codec : AllCodecs()) {
    for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
      const int num_ranks = 2 + which % 7;
      const int64_t row_size = which % 3 == 0 ? 256 : which % 3 == 1 ? 161 : 33;
      const DType dtype = which % 2 == 0 ? DType::kF32 : DType::kBf16;
      ++which;
      OneDeviceMessage message =
          RandomMessage(codec, dtype, algorithm, 2, row_size, num_ranks, &random);
      const std::vector<float> expected = Expected(message);
      std::vector<OneDeviceMessage> messages = {message};
      std::vector<uint32_t> faults;
      const absl::Status status = RunOnOneDevice(
          {.num_ranks = num_ranks, .num_threads = 32 * (1 + which % 2)}, &messages, &faults);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(AllHave(messages[0], expected))
          << ToString(codec) << " " << ToString(algorithm) << " on " << num_ranks
          << " ranks, rows of " << row_size;
      for (const uint32_t fault : faults) ASSERT_EQ(fault, 0U);
    }
  }
}

// The width that is used most, on any number of ranks.
TEST_F(OneDeviceTest, AnyNumberOfRanks) {
  Random random(12);
  for (int num_ranks = 1; num_ranks <= 8; ++num_ranks) {
    for (const int bits : {4, 32}) {
      for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
        for (const int64_t num_rows : {1, 3}) {
          OneDeviceMessage message = RandomMessage({.bits = bits, .group_size = 32}, DType::kBf16,
                                                   algorithm, num_rows, 130, num_ranks, &random);
          EXPECT_EQ(NumWrong({.num_ranks = num_ranks, .max_blocks = 3}, {message}), 0)
              << bits << " bits, " << ToString(algorithm) << ", " << num_ranks << " ranks, "
              << num_rows << " rows";
        }
      }
    }
  }
}

// Operations follow one another while ranks are late here and there; the epoch wraps on the way,
// and messages have different sizes, so that regions are used by others' blocks than before.
std::vector<OneDeviceMessage> ManyMessages(const CodecDesc& codec, Algorithm algorithm,
                                           int num_ranks, uint64_t seed) {
  Random random(seed);
  std::vector<OneDeviceMessage> messages;
  for (int i = 0; i < 9; ++i) {
    messages.push_back(RandomMessage(codec, i % 2 == 0 ? DType::kF32 : DType::kBf16, algorithm,
                                     1 + (i * 5) % 4, 96 + 64 * (i % 3), num_ranks, &random));
  }
  return messages;
}

TEST_F(OneDeviceTest, LateRanksChangeNothing) {
  for (uint32_t seed = 1; seed <= 3; ++seed) {
    for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
      for (const CodecDesc& codec : {CodecDesc{.bits = 5, .group_size = 32, .spikes = true},
                                     CodecDesc{.bits = 32, .group_size = 32}}) {
        const int num_ranks = 2 + static_cast<int>(seed);
        EXPECT_EQ(
            NumWrong({.num_ranks = num_ranks, .first_epoch = 0xffff'fffcU, .stall_seed = seed},
                     ManyMessages(codec, algorithm, num_ranks, seed)),
            0)
            << ToString(algorithm) << " " << ToString(codec) << ", seed " << seed;
      }
    }
  }
}

// The same with one buffer: a rank that is ahead overwrites what a late one still reads. This is
// what the test above would find.
TEST_F(OneDeviceTest, OneBufferIsNotEnough) {
  int num_wrong = 0;
  for (uint32_t seed = 1; seed <= 8 && num_wrong == 0; ++seed) {
    num_wrong +=
        NumWrong({.num_ranks = 3, .num_buffers = 1, .stall_seed = seed},
                 ManyMessages({.bits = 32, .group_size = 32}, Algorithm::kOneShot, 3, seed));
  }
  EXPECT_GT(num_wrong, 0);
}

// Flags of blocks that were idle while the epoch went a little more than half around: taken for
// signed, their distance says that they are of what is yet to come.
TEST_F(OneDeviceTest, OldFlagsAreNotTakenForNew) {
  constexpr uint32_t kHalfTurn = uint32_t{1} << 31;
  for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
    EXPECT_EQ(NumWrong({.num_ranks = 3, .flags_behind = kHalfTurn + 5, .stall_seed = 5},
                       ManyMessages({.bits = 32, .group_size = 32}, algorithm, 3, 5)),
              0);
  }
}

// A region that holds a part of a message at a time.
TEST_F(OneDeviceTest, LargeMessagesTakeSeveralLaunches) {
  Random random(13);
  for (const int bits : {4, 32}) {
    OneDeviceMessage message = RandomMessage({.bits = bits, .group_size = 128}, DType::kF32,
                                             Algorithm::kTwoShot, 7, 1999, 2, &random);
    message.codec.group_size = bits == 32 ? 32 : 128;
    EXPECT_EQ(NumWrong({.num_ranks = 2, .region_bytes = bits == 32 ? 30'000 : 4'000}, {message}),
              0);
  }
}

TEST_F(OneDeviceTest, WhoDoesNotComeIsNamed) {
  Random random(14);
  for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
    std::vector<OneDeviceMessage> messages = {
        RandomMessage({.bits = 8}, DType::kF32, algorithm, 1, 300, 3, &random),
        RandomMessage({.bits = 8}, DType::kF32, algorithm, 1, 300, 3, &random)};
    std::vector<uint32_t> faults;
    const absl::Status status = RunOnOneDevice(
        {.num_ranks = 3, .silent_rank = 1, .timeout_clocks = 1'000'000}, &messages, &faults);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(faults[1], 0U);
    // Who was second may have heard of it from the first.
    int num_timeouts = 0;
    for (const size_t rank : {size_t{0}, size_t{2}}) {
      ASSERT_NE(faults[rank], 0U);
      const bool is_timeout = FaultKind(faults[rank]) == P2pFaultKind::kTimeout;
      num_timeouts += is_timeout ? 1 : 0;
      EXPECT_EQ(FaultRank(faults[rank]), is_timeout ? 1 : 2 - static_cast<int>(rank));
    }
    EXPECT_GE(num_timeouts, 1);
  }
}

TEST_F(OneDeviceTest, AnAbortEndsAllWaits) {
  Random random(15);
  std::vector<OneDeviceMessage> messages = {
      RandomMessage({.bits = 4}, DType::kF32, Algorithm::kTwoShot, 1, 300, 3, &random)};
  std::vector<uint32_t> faults;
  const absl::Status status =
      RunOnOneDevice({.num_ranks = 3, .silent_rank = 1, .aborted_rank = 0}, &messages, &faults);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(faults[0], MakeP2pFault(P2pFaultKind::kAborted, 0));
  EXPECT_EQ(faults[2], MakeP2pFault(P2pFaultKind::kPeerAborted, 0));
}

}  // namespace
}  // namespace nibble::comm
