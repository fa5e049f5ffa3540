// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The all-reduce over plain memory: every codec, group size and shape against a plain sequential
// sum, bit for bit on every rank.

#include "comm/flash/flash.h"

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/memory_transport.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

using Rows = std::vector<float>;  // [num_rows, row_size]

struct Message {
  CodecDesc codec;
  int64_t num_rows = 0;
  int64_t row_size = 0;
  Algorithm algorithm = Algorithm::kTwoShot;
  uint64_t tag = 0;

  RowGroups groups() const { return {.row_size = row_size, .group_size = codec.group_size}; }
  int64_t num_groups() const { return num_rows * groups().groups_per_row(); }
  size_t num_values() const { return static_cast<size_t>(num_rows * row_size); }
};

// Runs body(rank) on a thread for each rank.
void OnRanks(int size, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

FlashArgs ArgsOf(const Message& message, float* data) {
  return {.data = data,
          .groups = message.groups(),
          .range = {0, message.num_groups()},
          .codec = message.codec,
          .algorithm = message.algorithm,
          .tag = message.tag,
          .deadline = Deadline::After(std::chrono::seconds(60))};
}

// What every rank holds afterwards.
std::vector<Rows> AllReduce(const Message& message, std::vector<Rows> inputs,
                            const testing::MemoryTransportOptions& options = {}) {
  const int size = static_cast<int>(inputs.size());
  const auto transports = testing::MakeMemoryTransports(size, options);
  OnRanks(size, [&](int rank) {
    FlashAllReduce flash(HostCpuFeatures().Best());
    Rows& data = inputs[static_cast<size_t>(rank)];
    const absl::Status status =
        flash.Run(ArgsOf(message, data.data()), transports[static_cast<size_t>(rank)].get());
    EXPECT_TRUE(status.ok()) << status;
  });
  return inputs;
}

// The same in one place, without stripes, chunks or messages.
Rows Expected(const Message& message, const std::vector<Rows>& inputs) {
  const int64_t count = message.num_groups();
  const auto bytes = static_cast<size_t>(EncodedBytes(message.codec, count));
  std::vector<AlignedBuffer<uint8_t>> codes;
  std::vector<const uint8_t*> pieces;
  for (const Rows& input : inputs) {
    codes.emplace_back(bytes);
    Encode(message.codec, message.groups(), input.data(), 0, count, codes.back().data(), Isa::kRef);
    pieces.push_back(codes.back().data());
  }
  AlignedBuffer<uint8_t> sum(bytes);
  ReduceEncoded(message.codec, pieces.data(), static_cast<int>(pieces.size()), count, sum.data(),
                Isa::kRef);
  Rows result(message.num_values());
  Decode(message.codec, message.groups(), sum.data(), 0, count, result.data(), Isa::kRef);
  return result;
}

bool SameBits(const Rows& a, const Rows& b) {
  return a.size() == b.size() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

std::vector<Rows> RandomInputs(const Message& message, int size, uint32_t seed) {
  testing::Random random(seed);
  std::vector<Rows> inputs;
  for (int r = 0; r < size; ++r) {
    inputs.push_back(random.Normals(static_cast<int64_t>(message.num_values())));
  }
  return inputs;
}

std::vector<CodecDesc> AllCodecs() {
  std::vector<CodecDesc> codecs = {{.bits = 32}, {.bits = 16}};
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    for (const int group_size : {32, 128}) {
      codecs.push_back({.bits = bits, .group_size = group_size});
    }
    codecs.push_back({.bits = bits,
                      .group_size = 64,
                      .scale = ScaleFormat::kLog2Int8,
                      .spikes = true,
                      .rotation = bits % 2 == 0});
  }
  return codecs;
}

class FlashOverCodecs : public ::testing::TestWithParam<CodecDesc> {};

TEST_P(FlashOverCodecs, SameBitsEverywhereAndAsInOnePlace) {
  // Rows shorter than a group, tails, fewer groups than ranks, one value, nothing.
  constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 1},   {3, 7},   {1, 128}, {5, 200},
                                                     {2, 448}, {17, 96}, {0, 64},  {3, 0}};
  for (int size = 2; size <= 8; ++size) {
    std::vector<Message> messages;
    std::vector<std::vector<Rows>> data;  // [message][rank]
    std::vector<Rows> expected;
    for (const auto& [num_rows, row_size] : kShapes) {
      // Both algorithms over all sizes and shapes; each shape by one of them for each size.
      const bool one_shot = (messages.size() + static_cast<size_t>(size)) % 2 == 0;
      messages.push_back({.codec = GetParam(),
                          .num_rows = num_rows,
                          .row_size = row_size,
                          .algorithm = one_shot ? Algorithm::kOneShot : Algorithm::kTwoShot,
                          .tag = static_cast<uint64_t>(messages.size()) << 32});
      data.push_back(RandomInputs(messages.back(), size, static_cast<uint32_t>(data.size() + 1)));
      expected.push_back(Expected(messages.back(), data.back()));
    }
    const auto transports =
        testing::MakeMemoryTransports(size, {.disorder_seed = static_cast<uint32_t>(size)});
    OnRanks(size, [&](int rank) {
      const auto me = static_cast<size_t>(rank);
      FlashAllReduce flash(HostCpuFeatures().Best());
      for (size_t m = 0; m < messages.size(); ++m) {
        const absl::Status status =
            flash.Run(ArgsOf(messages[m], data[m][me].data()), transports[me].get());
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_TRUE(SameBits(data[m][me], expected[m]))
            << size << " ranks, [" << messages[m].num_rows << ", " << messages[m].row_size
            << "], rank " << rank;
      }
    });
  }
}

// More chunks than have buffers at a time (but for the narrowest codes), slices that end inside
// stripes.
TEST_P(FlashOverCodecs, LongMessages) {
  for (const int size : {2, 3}) {
    for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
      const Message message = {
          .codec = GetParam(), .num_rows = 181, .row_size = 1000, .algorithm = algorithm};
      const std::vector<Rows> inputs = RandomInputs(message, size, 5);
      const Rows expected = Expected(message, inputs);
      const std::vector<Rows> results = AllReduce(message, inputs, {.disorder_seed = 9});
      for (const Rows& result : results) EXPECT_TRUE(SameBits(result, expected)) << size;
    }
  }
}

TEST_P(FlashOverCodecs, ARowsBitsDoNotDependOnItsNeighbours) {
  Message message = {.codec = GetParam(), .num_rows = 4, .row_size = 300};
  const std::vector<Rows> inputs = RandomInputs(message, 3, 11);
  const Rows all = AllReduce(message, inputs)[0];
  message.num_rows = 1;
  for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
    message.algorithm = algorithm;
    for (size_t row = 0; row < 4; ++row) {
      std::vector<Rows> alone;
      for (const Rows& input : inputs) {
        alone.emplace_back(input.begin() + row * 300, input.begin() + (row + 1) * 300);
      }
      const Rows result = AllReduce(message, alone)[2];
      EXPECT_TRUE(SameBits(result, {all.begin() + row * 300, all.begin() + (row + 1) * 300}))
          << "row " << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, FlashOverCodecs, ::testing::ValuesIn(AllCodecs()),
                         [](const auto& param) {
                           std::string name = ToString(param.param);
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return name;
                         });

TEST(Flash, SmallIntegersAreSummedExactly) {
  const Message message = {.codec = {.bits = 32}, .num_rows = 7, .row_size = 333};
  std::vector<Rows> inputs;
  testing::Random random(3);
  Rows sum(message.num_values(), 0.0F);
  for (int r = 0; r < 5; ++r) {
    Rows input(message.num_values());
    for (size_t i = 0; i < input.size(); ++i) {
      input[i] = static_cast<float>(random.Int(-1000, 1000));
      sum[i] += input[i];
    }
    inputs.push_back(std::move(input));
  }
  for (const Rows& result : AllReduce(message, inputs)) EXPECT_EQ(result, sum);
}

// The order is the ranks': (1e8 + 1) - 1e8 is 0 in float32, 1e8 - 1e8 + 1 is not.
TEST(Flash, SumsInRankOrder) {
  const Message message = {.codec = {.bits = 32}, .num_rows = 1, .row_size = 512};
  const std::vector<Rows> inputs = {Rows(512, 1e8F), Rows(512, 1.0F), Rows(512, -1e8F)};
  for (const Rows& result : AllReduce(message, inputs)) EXPECT_EQ(result, Rows(512, 0.0F));
  const std::vector<Rows> other = {Rows(512, 1e8F), Rows(512, -1e8F), Rows(512, 1.0F)};
  for (const Rows& result : AllReduce(message, other)) EXPECT_EQ(result, Rows(512, 1.0F));
}

// What the bit-equality above would catch: an owner that keeps the sum it has in full precision.
TEST(Flash, AnOwnerThatKeepsItsFullPrecisionStripeIsFoundOut) {
  const Message message = {.codec = {.bits = 8}, .num_rows = 4, .row_size = 256};
  const std::vector<Rows> inputs = RandomInputs(message, 2, 21);
  std::vector<Rows> results = AllReduce(message, inputs);
  ASSERT_TRUE(SameBits(results[0], results[1]));
  const GroupRange stripe = StripeOf({0, message.num_groups()}, 0, 2);
  for (int64_t i = 0; i < FirstValue(message.groups(), stripe.end); ++i) {
    const auto at = static_cast<size_t>(i);
    results[0][at] = inputs[0][at] + inputs[1][at];
  }
  EXPECT_FALSE(SameBits(results[0], results[1]));
}

TEST(Flash, OnlyTheRangeIsTouched) {
  const Message message = {.codec = {.bits = 8, .group_size = 32}, .num_rows = 6, .row_size = 100};
  std::vector<Rows> inputs = RandomInputs(message, 2, 31);
  const std::vector<Rows> before = inputs;
  const Rows expected = Expected(message, inputs);
  const auto transports = testing::MakeMemoryTransports(2);
  const GroupRange range = {5, 14};
  OnRanks(2, [&](int rank) {
    FlashAllReduce flash(HostCpuFeatures().Best());
    FlashArgs args = ArgsOf(message, inputs[static_cast<size_t>(rank)].data());
    args.range = range;
    EXPECT_TRUE(flash.Run(args, transports[static_cast<size_t>(rank)].get()).ok());
  });
  for (size_t r = 0; r < 2; ++r) {
    for (size_t i = 0; i < message.num_values(); ++i) {
      const bool inside = static_cast<int64_t>(i) >= FirstValue(message.groups(), range.begin) &&
                          static_cast<int64_t>(i) < FirstValue(message.groups(), range.end);
      EXPECT_EQ(inputs[r][i], inside ? expected[i] : before[r][i]) << i;
    }
  }
}

// Operations follow each other without a barrier, on the same buffers, over a wrap of the counter.
TEST(Flash, OperationsFollowEachOther) {
  Message message = {.codec = {.bits = 8}, .num_rows = 2, .row_size = 500};
  std::vector<Rows> inputs = RandomInputs(message, 4, 41);
  std::vector<Rows> expected;
  std::vector<Rows> reference = inputs;
  for (int i = 0; i < 6; ++i) {
    expected.push_back(Expected(message, reference));
    reference.assign(4, expected.back());
  }
  const auto transports = testing::MakeMemoryTransports(4, {.disorder_seed = 7});
  OnRanks(4, [&](int rank) {
    FlashAllReduce flash(HostCpuFeatures().Best());
    Rows& data = inputs[static_cast<size_t>(rank)];
    uint32_t operation = 0xfffffffd;
    for (const Rows& want : expected) {
      FlashArgs args = ArgsOf(message, data.data());
      args.tag = static_cast<uint64_t>(operation++) << 32;
      args.algorithm = operation % 2 == 0 ? Algorithm::kOneShot : Algorithm::kTwoShot;
      ASSERT_TRUE(flash.Run(args, transports[static_cast<size_t>(rank)].get()).ok());
      EXPECT_TRUE(SameBits(data, want));
    }
  });
}

TEST(Flash, ThreadsOfAPoolGiveTheSameBits) {
  const Message message = {.codec = {.bits = 4}, .num_rows = 100, .row_size = 1100};
  std::vector<Rows> inputs = RandomInputs(message, 2, 51);
  const Rows expected = Expected(message, inputs);
  const auto transports = testing::MakeMemoryTransports(2);
  OnRanks(2, [&](int rank) {
    ThreadPool pool(3);
    FlashAllReduce flash(HostCpuFeatures().Best());
    FlashArgs args = ArgsOf(message, inputs[static_cast<size_t>(rank)].data());
    args.pool = &pool;
    EXPECT_TRUE(flash.Run(args, transports[static_cast<size_t>(rank)].get()).ok());
  });
  for (const Rows& input : inputs) EXPECT_TRUE(SameBits(input, expected));
}

// A rank that leaves, is told to stop, or never comes: an error everywhere, in the middle of a
// message of many chunks.
class FlashFaults : public ::testing::TestWithParam<Algorithm> {
 protected:
  // Rank 1 runs `fault` instead of the operation; what the others get.
  std::vector<absl::Status> RunWithFault(
      const std::function<void(std::vector<std::unique_ptr<Transport>>*)>& fault,
      std::chrono::milliseconds timeout) {
    const Message message = {
        .codec = {.bits = 8}, .num_rows = 300, .row_size = 1024, .algorithm = GetParam()};
    std::vector<Rows> inputs = RandomInputs(message, 3, 61);
    // Outlives the transports, which may still hold messages to its memory after an error.
    FlashAllReduce of_rank[3] = {FlashAllReduce(Isa::kRef), FlashAllReduce(Isa::kRef),
                                 FlashAllReduce(Isa::kRef)};
    auto transports = testing::MakeMemoryTransports(3);
    std::vector<absl::Status> statuses(3);
    OnRanks(3, [&](int rank) {
      if (rank == 1) return fault(&transports);
      const auto me = static_cast<size_t>(rank);
      FlashArgs args = ArgsOf(message, inputs[me].data());
      args.deadline = Deadline::After(timeout);
      statuses[me] = of_rank[me].Run(args, transports[me].get());
      EXPECT_EQ(transports[me]->Send(1, 1, nullptr, 0).status(), statuses[me]);
    });
    return {statuses[0], statuses[2]};
  }
};

TEST_P(FlashFaults, APeerThatIsGone) {
  const auto statuses =
      RunWithFault([](auto* transports) { (*transports)[1].reset(); }, std::chrono::seconds(60));
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("rank 1"));
  }
}

TEST_P(FlashFaults, APeerThatNeverComes) {
  for (const absl::Status& status : RunWithFault([](auto*) {}, std::chrono::milliseconds(50))) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  }
}

TEST_P(FlashFaults, Abort) {
  const auto statuses = RunWithFault(
      [](auto* transports) {
        (*transports)[0]->Abort("the group is formed anew");
        (*transports)[2]->Abort("the group is formed anew");
      },
      std::chrono::seconds(60));
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(status, absl::AbortedError("the group is formed anew"));
  }
}

INSTANTIATE_TEST_SUITE_P(Algorithms, FlashFaults,
                         ::testing::Values(Algorithm::kOneShot, Algorithm::kTwoShot),
                         [](const auto& param) {
                           return param.param == Algorithm::kOneShot ? "one_shot" : "two_shot";
                         });

TEST(GroupRange, StripesCoverAllInOrder) {
  for (const int64_t groups : {0, 1, 2, 7, 8, 1000, 1001}) {
    for (int size = 1; size <= 9; ++size) {
      int64_t next = 3;
      for (int r = 0; r < size; ++r) {
        const GroupRange stripe = StripeOf({3, 3 + groups}, r, size);
        EXPECT_EQ(stripe.begin, next);
        EXPECT_EQ(stripe.begin, 3 + r * groups / size);
        next = stripe.end;
      }
      EXPECT_EQ(next, 3 + groups);
    }
  }
}

}  // namespace
}  // namespace nibble::comm
