// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Peers that die or stop, strangers at the port, ranks that do not belong to the group.
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/tcp/rank_address.h"
#include "comm/tcp/tcp_transport.h"
#include "tests/comm/tcp/tcp_group.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

// Rank 1 of 2 in a process of its own, which connects and then sends `bytes` with tag 1 before it
// waits for ever.
class PeerProcess {
 public:
  explicit PeerProcess(size_t bytes) {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends_), 0);
    pid_ = fork();
    if (pid_ == 0) Run(bytes);
    close(ends_[1]);
  }
  ~PeerProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(ends_[0]);
  }
  std::string address() const { return Read(ends_[0]); }
  void Tell(const std::string& address) const { Write(ends_[0], address); }
  void Signal(int signal) const { kill(pid_, signal); }

 private:
  static std::string Read(int fd) {
    char bytes[8192];
    const ssize_t length = read(fd, bytes, sizeof(bytes));
    return {bytes, static_cast<size_t>(std::max<ssize_t>(length, 0))};
  }
  static void Write(int fd, const std::string& bytes) {
    EXPECT_EQ(write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
  [[noreturn]] void Run(size_t bytes) {
    auto transport = TcpTransport::Open(Place(1, 2));
    if (!transport.ok()) _exit(1);
    Write(ends_[1], (*transport)->address());
    const std::vector<std::string> addresses = {Read(ends_[1]), (*transport)->address()};
    if (!(*transport)->Connect(addresses, Patient()).ok()) _exit(2);
    const std::string message(bytes, 'm');
    if (bytes > 0 && !(*transport)->Send(0, 1, message.data(), bytes).ok()) _exit(3);
    for (;;) {
      (*transport)->Progress();
      usleep(1000);
    }
  }

  int ends_[2];
  pid_t pid_ = -1;
};

// Rank 0, connected to that process.
std::unique_ptr<TcpTransport> ConnectedTo(const PeerProcess& peer) {
  auto transport = Opened(Place(0, 2));
  peer.Tell(transport->address());
  const absl::Status status =
      transport->Connect(std::vector{transport->address(), peer.address()}, Patient());
  EXPECT_TRUE(status.ok()) << status;
  return transport;
}

TEST(TcpFailure, AKilledPeerIsNamed) {
  const PeerProcess peer(0);
  auto transport = ConnectedTo(peer);
  std::string buffer(100, '?');
  const Ticket ticket = Begun(transport->Receive(1, 1, buffer.data(), buffer.size()));
  std::thread killer([&peer] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    peer.Signal(SIGKILL);
  });
  const absl::Status status = transport->Wait(ticket, Patient());
  killer.join();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 (127.0.0.1:"));
}

// In every phase of a large message that comes, while another goes out.
TEST(TcpFailure, KilledInTheMiddleOfLargeMessages) {
  constexpr size_t kBytes = 16 << 20;
  for (int after_us = 0; after_us <= 16'000; after_us += 2000) {
    const PeerProcess peer(kBytes);
    auto transport = ConnectedTo(peer);
    std::string in(kBytes, '?');
    const std::string out(kBytes, 'o');
    std::thread killer([&peer, after_us] {
      usleep(static_cast<useconds_t>(after_us));
      peer.Signal(SIGKILL);
    });
    const Ticket receive = Begun(transport->Receive(1, 1, in.data(), kBytes));
    const Ticket send = Begun(transport->Send(1, 2, out.data(), kBytes));
    // Both may come through; what nobody sends does not.
    absl::Status status = transport->Wait(receive, Patient());
    if (status.ok()) {
      EXPECT_EQ(in.find_first_not_of('m'), std::string::npos);
      status = transport->Wait(send, Patient());
    }
    if (status.ok()) {
      status = transport->Wait(Begun(transport->Receive(1, 3, in.data(), 1)), Patient());
    }
    killer.join();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  }
}

TEST(TcpFailure, AStoppedPeerEndsAtTheDeadline) {
  for (const size_t bytes : {size_t{0}, size_t{16} << 20}) {
    const PeerProcess peer(bytes);
    auto transport = ConnectedTo(peer);
    peer.Signal(SIGSTOP);
    std::string buffer(bytes + 10, '?');
    const Ticket ticket = Begun(transport->Receive(1, 7, buffer.data(), buffer.size()));
    const absl::Status status = transport->Wait(ticket, Soon());
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 (127.0.0.1:"));
  }
}

// Aborted between two waits: the next call closes the connections, and peers that wait see it.
TEST(TcpFailure, AnAbortedTransportIsGone) {
  std::atomic<bool> seen{false};
  RunConnected(2, [&seen](TcpTransport* transport) {
    char byte = 0;
    if (transport->rank() == 1) {
      const absl::Status status =
          transport->Wait(Begun(transport->Receive(0, 1, &byte, 1)), Patient());
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      seen = true;
      return;
    }
    transport->Abort("formed anew");
    transport->Progress();
    for (const absl::Status& status :
         {transport->Send(1, 1, &byte, 1).status(), transport->Receive(1, 2, &byte, 1).status()}) {
      EXPECT_TRUE(absl::IsAborted(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("formed anew"));
    }
    for (int i = 0; i < 2000 && !seen; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_TRUE(seen);  // while this transport still exists
  });
}

TEST(TcpFailure, APeerThatNeverConnectsIsNamed) {
  auto group = OpenedGroup(3);
  const auto addresses = AddressesOf(group);
  group.pop_back();  // rank 2 is gone
  group.push_back(Opened(Place(2, 3)));
  RunRanks(std::move(group), [&](TcpTransport* transport) {
    if (transport->rank() == 2) return;
    const absl::Status status = transport->Connect(addresses, Patient());
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  });
  group = OpenedGroup(2);
  const absl::Status status = group[0]->Connect(AddressesOf(group), Soon());
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 (127.0.0.1:"));
}

TEST(TcpFailure, AddressesThatAreNone) {
  for (const std::string& bytes : {std::string(), std::string("garbage"), std::string(100, '\0')}) {
    auto transport = Opened(Place(0, 2));
    const absl::Status status =
        transport->Connect(std::vector{transport->address(), bytes}, Patient());
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  }
  auto group = OpenedGroup(2);
  const auto addresses = AddressesOf(group);
  EXPECT_FALSE(group[0]->Connect(std::vector{addresses[0]}, Patient()).ok()) << "too few";
  EXPECT_FALSE(group[1]->Connect(std::vector{addresses[1], addresses[0]}, Patient()).ok())
      << "in another order";
}

TEST(TcpFailure, AnotherGenerationIsRefusedByItsAddress) {
  auto stale = Opened(Place(0, 2, 6));
  auto fresh = Opened(Place(1, 2, 7));
  const std::vector<std::string> addresses = {stale->address(), fresh->address()};
  const absl::Status status = stale->Connect(addresses, Patient());
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("generation 7"));
  EXPECT_TRUE(absl::IsFailedPrecondition(fresh->Connect(addresses, Patient())));
}

// Another process that says it is rank 1 gets no answer, and the group goes on.
TEST(TcpFailure, ASecondRankOfTheSameNumberIsRefused) {
  ::testing::internal::CaptureStderr();
  auto group = OpenedGroup(2);
  auto intruder = Opened(Place(1, 2));
  const auto addresses = AddressesOf(group);
  std::thread thread([&] {
    const absl::Status status = intruder->Connect(std::vector{addresses[0], intruder->address()},
                                                  Deadline::After(std::chrono::seconds(3)));
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 (127.0.0.1:"));
  });
  RunRanks(std::move(group), [&](TcpTransport* transport) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const absl::Status status = transport->Connect(addresses, Patient());
    ASSERT_TRUE(status.ok()) << status;
    for (int i = 0; i < 600; ++i) {
      ExchangeWith(transport, 1 - transport->rank(), 200'000);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  thread.join();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("calls itself rank 1"));
}

// -1 when nobody answers within 100 ms.
int Dial(const std::string& host, uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  inet_pton(AF_INET, host.c_str(), &to.sin_addr);
  (void)connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to));
  pollfd poll_fd = {.fd = fd, .events = POLLOUT, .revents = 0};
  int error = 0;
  socklen_t length = sizeof(error);
  if (poll(&poll_fd, 1, 100) == 1 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 &&
      error == 0) {
    return fd;
  }
  close(fd);
  return -1;
}

TEST(TcpFailure, GarbageAtThePort) {
  auto group = OpenedGroup(2);
  const auto addresses = AddressesOf(group);
  const uint16_t port = RankAddress::Parse(addresses[0])->port;
  testing::Random random(1);
  std::vector<int> fds;
  for (int i = 0; i < 20; ++i) {
    const int fd = Dial("127.0.0.1", port);
    ASSERT_GE(fd, 0);
    std::string garbage(static_cast<size_t>(random.Int(0, 3000)), '\0');
    for (char& byte : garbage) byte = static_cast<char>(random.Bits());
    (void)send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL);
    if (i % 2 == 0) {
      close(fd);
    } else {
      fds.push_back(fd);
    }
  }
  EXPECT_EQ(Dial("127.0.0.2", port), -1) << "listens on more than its address";
  RunRanks(std::move(group), [&](TcpTransport* transport) {
    const absl::Status status = transport->Connect(addresses, Patient());
    ASSERT_TRUE(status.ok()) << status;
    ExchangeWith(transport, 1 - transport->rank());
    if (transport->rank() == 0) {
      for (const int fd : fds) (void)send(fd, "more garbage", 12, MSG_NOSIGNAL);
      EXPECT_EQ(Dial("127.0.0.1", port), -1) << "the port still answers";
    }
    ExchangeWith(transport, 1 - transport->rank(), 1'000'000);
  });
  for (const int fd : fds) close(fd);
}

}  // namespace
}  // namespace nibble::comm
