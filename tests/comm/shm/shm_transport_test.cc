// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/shm_transport.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/comm/shm/rank_threads.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

std::string Bytes(int from, int to, uint64_t tag, size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<char>(i * 7 + i / 251 + static_cast<size_t>(from * 31 + to * 3) + tag);
  }
  return bytes;
}

Ticket Begun(absl::StatusOr<Ticket> ticket) {
  EXPECT_TRUE(ticket.ok()) << ticket.status();
  return ticket.ok() ? *ticket : 0;
}

class ShmTransportTest : public ::testing::TestWithParam<int> {};

// Everyone to everyone, messages below and above the ring's size, all under way at once; half of
// the ranks receive before they send, and in the other order of tags.
TEST_P(ShmTransportTest, AllToAllOfAllSizes) {
  const int num_ranks = GetParam();
  const auto segments = ThreadSegments(num_ranks);
  const size_t ring = shm::Layout::For(num_ranks).ring_bytes;
  const std::vector<size_t> sizes = {0,        1,        15,        16,       17,          1000,
                                     ring / 4, ring - 1, ring - 16, ring + 1, 3 * ring + 5};
  RunRanks(segments, [&](ShmSegment* segment) {
    ShmTransport transport(segment);
    const int rank = segment->rank();
    std::vector<std::string> sent;
    std::vector<std::string> got;
    sent.reserve(sizes.size() * segments.size());
    got.reserve(sizes.size() * segments.size());
    std::vector<Ticket> tickets;
    const auto send_all = [&] {
      for (int peer = 0; peer < num_ranks; ++peer) {
        for (size_t tag = 0; tag < sizes.size() && peer != rank; ++tag) {
          sent.push_back(Bytes(rank, peer, tag, sizes[tag]));
          tickets.push_back(
              Begun(transport.Send(peer, tag, sent.back().data(), sent.back().size())));
        }
      }
    };
    const auto receive_all = [&] {
      for (int peer = 0; peer < num_ranks; ++peer) {
        for (size_t i = 0; i < sizes.size() && peer != rank; ++i) {
          const size_t tag = rank % 2 == 0 ? i : sizes.size() - 1 - i;
          got.emplace_back(sizes[tag], '?');
          tickets.push_back(
              Begun(transport.Receive(peer, tag, got.back().data(), got.back().size())));
        }
      }
    };
    if (rank % 2 == 0) receive_all();
    send_all();
    if (rank % 2 != 0) receive_all();
    for (const Ticket ticket : tickets) {
      const absl::Status status = transport.Wait(ticket, TestDeadline());
      ASSERT_TRUE(status.ok()) << status;
    }
    size_t next = 0;
    for (int peer = 0; peer < num_ranks; ++peer) {
      for (size_t i = 0; i < sizes.size() && peer != rank; ++i, ++next) {
        const size_t tag = rank % 2 == 0 ? i : sizes.size() - 1 - i;
        ASSERT_TRUE(got[next] == Bytes(peer, rank, tag, sizes[tag]))
            << sizes[tag] << " bytes from " << peer << " to " << rank;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, ShmTransportTest, ::testing::Values(1, 2, 3, 5, 8));

// Messages of one tag keep their order, whether a Receive waited for them or they for it.
TEST(ShmTransport, OneTagKeepsItsOrder) {
  const auto segments = ThreadSegments(2);
  RunRanks(segments, [](ShmSegment* segment) {
    constexpr int kMessages = 2000;
    ShmTransport transport(segment);
    testing::Random random(static_cast<uint32_t>(segment->rank()));
    std::vector<int> values(kMessages);
    std::vector<Ticket> tickets;
    for (int i = 0; i < kMessages; ++i) {
      auto* const value = &values[static_cast<size_t>(i)];
      *value = segment->rank() == 0 ? i : -1;
      tickets.push_back(Begun(segment->rank() == 0
                                  ? transport.Send(1, 9, value, sizeof(*value))
                                  : transport.Receive(0, 9, value, sizeof(*value))));
      if (random.Int(0, 3) == 0) transport.Progress();
      if (random.Int(0, 30) == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    for (const Ticket ticket : tickets) {
      const absl::Status status = transport.Wait(ticket, TestDeadline());
      ASSERT_TRUE(status.ok()) << status;
    }
    for (int i = 0; i < kMessages; ++i) ASSERT_EQ(values[static_cast<size_t>(i)], i);
  });
}

// Part of it lies aside, the rest goes straight to the buffer.
TEST(ShmTransport, AReceiveInTheMiddleOfItsMessage) {
  const auto segments = ThreadSegments(2);
  ShmTransport sender(segments[0].get());
  ShmTransport receiver(segments[1].get());
  const size_t size = 2 * shm::Layout::For(2).ring_bytes + 3;
  const std::string sent = Bytes(0, 1, 4, size);
  const Ticket out = Begun(sender.Send(1, 4, sent.data(), size));
  receiver.Progress();
  std::string got(size, '?');
  const Ticket in = Begun(receiver.Receive(0, 4, got.data(), size));
  for (int i = 0; i < 10; ++i) {
    sender.Progress();
    receiver.Progress();
  }
  EXPECT_TRUE(sender.Wait(out, TestDeadline()).ok());
  EXPECT_TRUE(receiver.Wait(in, TestDeadline()).ok());
  EXPECT_TRUE(got == sent);
}

TEST(ShmTransport, OtherSizesAreNamed) {
  for (const bool posted_first : {true, false}) {
    const auto segments = ThreadSegments(2);
    ShmTransport sender(segments[0].get());
    ShmTransport receiver(segments[1].get());
    const std::string sent(10, 'x');
    std::string got(12, '?');
    absl::Status status;
    if (posted_first) {
      const Ticket in = Begun(receiver.Receive(0, 4, got.data(), got.size()));
      Begun(sender.Send(1, 4, sent.data(), sent.size()));
      status = receiver.Wait(in, TestDeadline());
    } else {
      Begun(sender.Send(1, 4, sent.data(), sent.size()));
      receiver.Progress();
      status = receiver.Receive(0, 4, got.data(), got.size()).status();
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("sent 10 bytes"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("expects 12"));
    EXPECT_EQ(got, std::string(12, '?'));
    EXPECT_EQ(receiver.Send(0, 1, sent.data(), 1).status(), status) << "broken for good";
    EXPECT_EQ(sender.Receive(1, 1, got.data(), 1).status(), status) << "for the peer too";
  }
}

// A header that no sender writes.
TEST(ShmTransport, GarbageInTheRingIsRefused) {
  const auto segments = ThreadSegments(2);
  ShmTransport receiver(segments[1].get());
  const shm::Ring ring = segments[1]->ring(0, 1);
  std::memset(ring.data, 0xEE, 64);
  ring.state->written.store(64);
  receiver.Progress();
  EXPECT_EQ(segments[1]->Health().code(), absl::StatusCode::kDataLoss);
}

TEST(ShmTransport, ALatePeerIsNamed) {
  const auto segments = ThreadSegments(3);
  ShmTransport transport(segments[0].get());
  char byte = 0;
  const Ticket in = Begun(transport.Receive(2, 4, &byte, 1));
  const absl::Status status = transport.Wait(in, Deadline::After(std::chrono::milliseconds(30)));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 2"));
}

TEST(ShmTransport, AbortEndsAWait) {
  const auto segments = ThreadSegments(2);
  ShmTransport transport(segments[0].get());
  char byte = 0;
  const Ticket in = Begun(transport.Receive(1, 4, &byte, 1));
  std::thread aborting([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    transport.Abort("enough");
  });
  EXPECT_EQ(transport.Wait(in, TestDeadline()), absl::AbortedError("enough"));
  aborting.join();
  EXPECT_EQ(transport.Send(1, 4, &byte, 1).status(), absl::AbortedError("enough"));
}

}  // namespace
}  // namespace nibble::comm
