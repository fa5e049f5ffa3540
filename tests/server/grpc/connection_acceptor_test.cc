// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/connection_acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "gmock/gmock.h"

#include "tests/server/grpc/grpc_fixture.h"

namespace nibble::server {
namespace {

using testing::Eventually;
using ::testing::HasSubstr;

// A client's socket; -1: refused.
int Connect(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
  ::close(fd);
  return -1;
}

// Whether the server has closed it: at once, for nothing was sent.
bool IsClosed(int fd) {
  char byte = 0;
  return ::recv(fd, &byte, 1, 0) <= 0;
}

class ConnectionAcceptorTest : public ::testing::Test {
 protected:
  void Listen(int64_t max_connections) {
    auto acceptor = ConnectionAcceptor::Listen("127.0.0.1", 0, max_connections);
    ASSERT_TRUE(acceptor.ok()) << acceptor.status();
    acceptor_ = *std::move(acceptor);
    acceptor_->Start([this](int fd) {
      const std::lock_guard lock(mutex_);
      taken_.push_back(fd);
    });
  }
  void TearDown() override {
    acceptor_.reset();
    for (const int fd : taken_) ::close(fd);
    for (const int fd : clients_) ::close(fd);
  }
  int Client() {
    clients_.push_back(Connect(acceptor_->port()));
    EXPECT_GE(clients_.back(), 0);
    return clients_.back();
  }
  bool Took(size_t count) {
    return Eventually([&] {
      const std::lock_guard lock(mutex_);
      return taken_.size() == count;
    });
  }
  // As gRPC does, without a word.
  void CloseTaken(size_t index) {
    const std::lock_guard lock(mutex_);
    ::close(taken_[index]);
    taken_.erase(taken_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  std::unique_ptr<ConnectionAcceptor> acceptor_;
  std::mutex mutex_;
  std::vector<int> taken_;
  std::vector<int> clients_;
};

TEST_F(ConnectionAcceptorTest, SoManyAndNoMore) {
  Listen(3);
  for (int i = 0; i < 3; ++i) Client();
  ASSERT_TRUE(Took(3));
  EXPECT_EQ(acceptor_->num_connections(), 3);
  EXPECT_TRUE(IsClosed(Client()));
  EXPECT_TRUE(Took(3));
  CloseTaken(1);
  // The place is found free once somebody asks for it, a tenth of a second later at most.
  EXPECT_TRUE(Eventually([&] {
    const int client = Client();
    ::send(client, "x", 1, MSG_NOSIGNAL);
    const std::lock_guard lock(mutex_);
    return taken_.size() == 3;
  }));
  EXPECT_EQ(acceptor_->num_connections(), 3);
}

TEST_F(ConnectionAcceptorTest, ADescriptorThatIsSomethingElseByNowIsNoConnection) {
  Listen(3);
  Client();
  ASSERT_TRUE(Took(1));
  const int other = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(::dup3(other, taken_[0], O_CLOEXEC), taken_[0]);  // closes what was there
  ::close(other);
  EXPECT_EQ(acceptor_->num_connections(), 0);
}

TEST_F(ConnectionAcceptorTest, NobodyComesAfterTheEnd) {
  Listen(3);
  acceptor_->Stop();
  EXPECT_EQ(Connect(acceptor_->port()), -1);
}

TEST(ConnectionAcceptorListenTest, SaysWhyItCannot) {
  const auto first = ConnectionAcceptor::Listen("127.0.0.1", 0, 1);
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status taken = ConnectionAcceptor::Listen("0.0.0.0", (*first)->port(), 1).status();
  EXPECT_TRUE(absl::IsUnavailable(taken));
  EXPECT_THAT(std::string(taken.message()), HasSubstr("Address already in use"));
  EXPECT_TRUE(absl::IsUnavailable(ConnectionAcceptor::Listen("a.name", 0, 1).status()));
}

class GrpcConnectionsTest : public testing::GrpcTest {};

TEST_F(GrpcConnectionsTest, AreLimitedAndCounted) {
  Serve({.max_connections = 2});
  EXPECT_TRUE(StartAdmitted(TextRequest()) != nullptr);  // by the first
  EXPECT_EQ(server_->num_connections(), 1);
  const int second = Connect(server_->port());
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 2; }));
  const int third = Connect(server_->port());
  EXPECT_TRUE(IsClosed(third));
  ::close(third);
  ::close(second);  // gRPC sees it, and closes its end
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 1; }));
}

}  // namespace
}  // namespace nibble::server
