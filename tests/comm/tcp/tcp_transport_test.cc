// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/tcp/tcp_transport.h"

#include <dirent.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/comm/tcp/tcp_group.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

class TcpTransportTest : public ::testing::TestWithParam<int> {};

// Everyone to everyone, all under way at once; half of the ranks receive before they send, and in
// the other order of tags.
TEST_P(TcpTransportTest, AllToAllOfAllSizes) {
  const int num_ranks = GetParam();
  std::vector<size_t> sizes = {0,     1,     15,     4096,   4097,   32769,  57343,
                               57344, 57345, 114688, 131073, 300007, 1000003};
  if (num_ranks == 2) sizes.insert(sizes.end(), {size_t{1} << 21, (size_t{8} << 20) - 1});
  RunConnected(num_ranks, [&](TcpTransport* transport) {
    const int rank = transport->rank();
    std::vector<std::string> sent;
    std::vector<std::string> got;
    sent.reserve(sizes.size() * static_cast<size_t>(num_ranks));
    got.reserve(sizes.size() * static_cast<size_t>(num_ranks));
    std::vector<Ticket> tickets;
    const auto send_all = [&] {
      for (int peer = 0; peer < num_ranks; ++peer) {
        for (size_t tag = 0; tag < sizes.size() && peer != rank; ++tag) {
          sent.push_back(Bytes(rank, peer, tag, sizes[tag]));
          tickets.push_back(
              Begun(transport->Send(peer, tag, sent.back().data(), sent.back().size())));
        }
      }
    };
    const auto receive_all = [&] {
      for (int peer = 0; peer < num_ranks; ++peer) {
        for (size_t i = 0; i < sizes.size() && peer != rank; ++i) {
          const size_t tag = rank % 2 == 0 ? i : sizes.size() - 1 - i;
          got.emplace_back(sizes[tag], '?');
          tickets.push_back(
              Begun(transport->Receive(peer, tag, got.back().data(), got.back().size())));
        }
      }
    };
    if (rank % 2 == 0) receive_all();
    send_all();
    if (rank % 2 == 1) {
      for (int i = 0; i < 1000; ++i) transport->Progress();
      receive_all();
    }
    for (auto ticket = tickets.rbegin(); ticket != tickets.rend(); ++ticket) {
      const absl::Status status = transport->Wait(*ticket, Patient());
      ASSERT_TRUE(status.ok()) << status;
    }
    size_t next = 0;
    for (int peer = 0; peer < num_ranks; ++peer) {
      for (size_t i = 0; i < sizes.size() && peer != rank; ++i) {
        const size_t tag = rank % 2 == 0 ? i : sizes.size() - 1 - i;
        EXPECT_TRUE(got[next++] == Bytes(peer, rank, tag, sizes[tag]))
            << "from " << peer << ", " << sizes[tag] << " bytes";
      }
    }
  });
}

// Small messages are copied and large ones fetched; both keep the order of their tag.
TEST_P(TcpTransportTest, OneTagKeepsItsOrder) {
  constexpr int kMessages = 300;
  const auto size_of = [](int i) {
    testing::Random random(static_cast<uint32_t>(i));
    return static_cast<size_t>(random.Int(0, 9) == 0 ? random.Int(0, 400'000)
                                                     : random.Int(0, 3000));
  };
  RunConnected(GetParam(), [&](TcpTransport* transport) {
    const int next = (transport->rank() + 1) % transport->size();
    const int last = (transport->rank() + transport->size() - 1) % transport->size();
    std::vector<std::string> sent;
    std::vector<std::string> got;
    std::vector<Ticket> tickets;
    for (int i = 0; i < kMessages; ++i) {
      sent.push_back(Bytes(transport->rank(), next, static_cast<uint64_t>(i), size_of(i)));
      got.emplace_back(size_of(i), '?');
    }
    for (size_t i = 0; i < kMessages; ++i) {
      tickets.push_back(Begun(transport->Send(next, 5, sent[i].data(), sent[i].size())));
    }
    for (size_t i = 0; i < kMessages; ++i) {
      tickets.push_back(Begun(transport->Receive(last, 5, got[i].data(), got[i].size())));
      if (i % 7 == 0) transport->Progress();
    }
    for (const Ticket ticket : tickets) {
      const absl::Status status = transport->Wait(ticket, Patient());
      ASSERT_TRUE(status.ok()) << status;
    }
    for (int i = 0; i < kMessages; ++i) {
      EXPECT_TRUE(got[static_cast<size_t>(i)] ==
                  Bytes(last, transport->rank(), static_cast<uint64_t>(i), size_of(i)))
          << i;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, TcpTransportTest, ::testing::Values(2, 3, 4));

// A rank that has all it came for may leave while its last message is on the way.
TEST(TcpTransport, TheLastMessageArrives) {
  for (const size_t size : {size_t{10}, size_t{50'000}, size_t{300'000}}) {
    RunConnected(2, [size](TcpTransport* transport) {
      if (transport->rank() == 0) {
        const std::string out = Bytes(0, 1, 1, size);
        const Ticket ticket = Begun(transport->Send(1, 1, out.data(), size));
        EXPECT_TRUE(transport->Wait(ticket, Patient()).ok());
        return;
      }
      if (size < 60'000) std::this_thread::sleep_for(std::chrono::milliseconds(50));
      std::string in(size, '?');
      const Ticket ticket = Begun(transport->Receive(0, 1, in.data(), size));
      const absl::Status status = transport->Wait(ticket, Patient());
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(in == Bytes(0, 1, 1, size));
    });
  }
}

// A message that was waited for needs no more help of its sender, which may sleep from then on,
// also when the last of it was what the socket had no room for. How much that is the kernel
// decides: one message after the other is let go while nobody receives, first until one does not
// go, then in rounds of about so many.
TEST(TcpTransport, WhatWasWaitedForIsOutOfTheSendersHands) {
  constexpr size_t kSize = 100'000;
  auto group = OpenedGroup(2);
  const std::vector<std::string> addresses = AddressesOf(group);
  std::atomic<int> num_asked{0};  // since the beginning, as the next
  std::atomic<int> num_sent{0};
  std::atomic<bool> ended{false};
  std::thread sender([&, transport = std::move(group[0])] {
    ASSERT_TRUE(transport->Connect(addresses, Patient()).ok());
    const std::string out = Bytes(0, 1, 1, kSize);
    while (!ended) {
      if (num_sent == num_asked) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        continue;
      }
      const Ticket ticket = Begun(transport->Send(1, 1, out.data(), kSize));
      ASSERT_TRUE(transport->Wait(ticket, Patient()).ok());
      ++num_sent;
    }
  });
  const std::unique_ptr<TcpTransport> transport = std::move(group[1]);
  EXPECT_TRUE(transport->Connect(addresses, Patient()).ok());
  const auto all_left = [&](int from, int count) {
    int before = -1;
    for (int quiet = 0; quiet < 20 && num_sent - from < count;) {
      quiet = num_sent == before ? quiet + 1 : 0;
      before = num_sent;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return num_sent - from;
  };
  const auto receive = [&](int count) {
    std::string in(kSize, '?');
    for (int i = 0; i < count; ++i) {
      const Ticket ticket = Begun(transport->Receive(0, 1, in.data(), kSize));
      const absl::Status status =
          transport->Wait(ticket, Deadline::After(std::chrono::seconds(20)));
      if (!status.ok()) {
        ADD_FAILURE() << "message " << i << " of " << count << ": " << status;
        return false;
      }
    }
    return true;
  };
  constexpr int kMoreThanFits = 1600;
  num_asked = kMoreThanFits;
  const int fit = all_left(0, kMoreThanFits);
  bool works = receive(kMoreThanFits);
  for (int round = 0, count = fit - 4; works && round < 12; ++round) {
    count = std::max(count, 1);
    const int from = num_asked;
    num_asked = from + count;
    const int left = all_left(from, count);
    works = receive(count);
    count = left == count ? count + 1 : left - 2;
  }
  ended = true;
  sender.join();
}

// The connection ends while what was sent fills the socket: by the sender's deadline, by a peer
// that leaves.
TEST(TcpTransport, AFullSocketEnds) {
  for (const bool leaves : {false, true}) {
    std::atomic<bool> ended{false};
    RunConnected(2, [&](TcpTransport* transport) {
      if (transport->rank() == 1) {
        if (leaves) std::this_thread::sleep_for(std::chrono::milliseconds(300));
        while (!leaves && !ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return;
      }
      const std::string out = Bytes(0, 1, 1, 40'000);
      absl::Status status;
      while (status.ok()) {
        const auto ticket = transport->Send(1, 1, out.data(), out.size());
        status =
            ticket.ok() ? transport->Wait(*ticket, leaves ? Patient() : Soon()) : ticket.status();
      }
      ended = true;
      EXPECT_EQ(status.code(),
                leaves ? absl::StatusCode::kUnavailable : absl::StatusCode::kDeadlineExceeded)
          << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 (127.0.0.1:"));
    });
  }
}

// Small and large, message first and receive first.
TEST(TcpTransport, AnotherSizeIsDataLoss) {
  for (const size_t size : {size_t{32}, size_t{300'000}}) {
    for (const bool message_first : {false, true}) {
      RunConnected(2, [size, message_first](TcpTransport* transport) {
        std::string buffer(size, '?');
        if (transport->rank() == 0) {
          const Ticket ticket = Begun(transport->Send(1, 3, buffer.data(), size));
          (void)transport->Wait(ticket, Patient());  // sent, or refused
          std::string none;
          const auto never = transport->Receive(1, 4, none.data(), 0);
          if (never.ok()) (void)transport->Wait(*never, Patient());
          return;
        }
        if (message_first) {
          for (int i = 0; i < 200; ++i) {
            transport->Progress();
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
        }
        auto ticket = transport->Receive(0, 3, buffer.data(), size - 1);
        const absl::Status status =
            ticket.ok() ? transport->Wait(*ticket, Patient()) : ticket.status();
        EXPECT_TRUE(absl::IsDataLoss(status)) << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(size) + " bytes"));
        EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(size - 1)));
        EXPECT_EQ(transport->Send(0, 1, nullptr, 0).status(), status) << "not broken";
      });
    }
  }
}

TEST(TcpTransport, ADeadlineBreaksBothEnds) {
  RunConnected(2, [](TcpTransport* transport) {
    std::string buffer(10, '?');
    const Ticket ticket = Begun(transport->Receive(1 - transport->rank(), 3, buffer.data(), 10));
    if (transport->rank() == 0) {
      const absl::Status status = transport->Wait(ticket, Soon());
      EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 (127.0.0.1:"));
      EXPECT_EQ(transport->Receive(1, 4, buffer.data(), 10).status(), status);
      EXPECT_EQ(transport->Wait(ticket, Patient()), status);
    } else {
      const absl::Status status = transport->Wait(ticket, Patient());
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 (127.0.0.1:"));
    }
  });
}

TEST(TcpTransport, AbortEndsAWait) {
  RunConnected(2, [](TcpTransport* transport) {
    std::string buffer(10, '?');
    const Ticket ticket = Begun(transport->Receive(1 - transport->rank(), 3, buffer.data(), 10));
    std::thread aborter;
    if (transport->rank() == 0) {
      aborter = std::thread([transport] {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        transport->Abort("the operator said so");
      });
    }
    const absl::Status status = transport->Wait(ticket, Patient());
    if (transport->rank() == 0) {
      aborter.join();
      EXPECT_TRUE(absl::IsAborted(status)) << status;
      EXPECT_EQ(status.message(), "the operator said so");
      transport->Abort("again");
      EXPECT_EQ(transport->Wait(ticket, Patient()), status);
    } else {
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    }
  });
}

TEST(TcpTransport, AbortEndsConnect) {
  auto group = OpenedGroup(2);
  std::thread aborter([&group] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    group[0]->Abort("no longer needed");
  });
  const absl::Status status = group[0]->Connect(AddressesOf(group), Patient());
  aborter.join();
  EXPECT_TRUE(absl::IsAborted(status)) << status;
}

TEST(TcpTransport, OneRankAlone) {
  RunConnected(1, [](TcpTransport* transport) {
    EXPECT_EQ(transport->name(), "tcp");
    EXPECT_TRUE(absl::IsInvalidArgument(transport->Send(0, 1, nullptr, 0).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(transport->Send(1, 1, nullptr, 0).status()));
  });
}

TEST(TcpTransport, ATicketIsWaitedForOnce) {
  RunConnected(2, [](TcpTransport* transport) {
    const Ticket ticket = Begun(transport->Send(1 - transport->rank(), 1, nullptr, 0));
    EXPECT_TRUE(transport->Wait(ticket, Patient()).ok());
    EXPECT_TRUE(absl::IsInvalidArgument(transport->Wait(ticket, Patient())));
    EXPECT_TRUE(absl::IsInvalidArgument(transport->Wait(987654, Patient())));
    ExchangeWith(transport, 1 - transport->rank());
  });
}

TEST(TcpTransport, PlacesThatMakeNoSense) {
  const auto code_of = [](TcpPlace place) { return TcpTransport::Open(place).status().code(); };
  EXPECT_EQ(code_of(Place(2, 2)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of(Place(-1, 2)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of(Place(0, 5000)), absl::StatusCode::kInvalidArgument);
  TcpPlace place = Place(0, 2);
  place.group_id = "";
  EXPECT_EQ(code_of(place), absl::StatusCode::kInvalidArgument);
  place = Place(0, 2);
  for (const char* no_address : {"", "localhost", "127.0.0.1:80", "eth0", "300.1.1.1"}) {
    place.bind_address = no_address;
    EXPECT_EQ(code_of(place), absl::StatusCode::kInvalidArgument) << no_address;
  }
  place.bind_address = "192.0.2.77";  // for documentation: nobody's
  EXPECT_EQ(code_of(place), absl::StatusCode::kUnavailable);
}

TEST(TcpTransport, NothingIsLeftOpen) {
  const auto num_open = [] {
    int count = 0;
    DIR* const directory = opendir("/proc/self/fd");
    while (readdir(directory) != nullptr) ++count;
    closedir(directory);
    return count;
  };
  RunConnected(2, [](TcpTransport* transport) { ExchangeWith(transport, 1 - transport->rank()); });
  const int before = num_open();
  for (int i = 0; i < 3; ++i) {
    RunConnected(3, [](TcpTransport* transport) {
      if (transport->rank() < 2) ExchangeWith(transport, 1 - transport->rank());
    });
  }
  EXPECT_LE(num_open(), before);
}

}  // namespace
}  // namespace nibble::comm
