// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What clients together may cost the server: bytes that it holds for them, and open files.

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/http/http_server.h"
#include "tests/server/http/http_server_fixture.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using testing::Eventually;
using ::testing::HasSubstr;
using testing::RawClient;
using ::testing::StartsWith;

std::string Repeat(std::string_view text, int count) {
  std::string result;
  for (int i = 0; i < count; ++i) result += text;
  return result;
}

TEST_F(HttpServerTest, ReadsLittleAheadOfAnOpenAnswer) {
  StartServer({.num_threads = 1});
  RawClient client(port());
  client.Send(kHold);
  auto responder = TakeHeld();
  constexpr int kRequests = 150'000;  // 5 MB, more than both kernel buffers
  std::atomic<bool> all_sent{false};
  std::thread sender([&] {
    EXPECT_TRUE(client.Send(Repeat(kHello, kRequests)));
    all_sent.store(true);
  });
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() >= 64 << 10; }));
  int64_t most = 0;
  for (int i = 0; i < 50; ++i) {
    most = std::max(most, server_->buffered_bytes());
    ::usleep(2000);
  }
  EXPECT_LE(most, (64 << 10) + (64 << 10));  // the limit and one read
  EXPECT_FALSE(all_sent.load());
  // What waited in the kernel is served in the end, every request.
  responder->Send(200, "text/plain", "first");
  EXPECT_EQ(client.ReadResponse().second, "first");
  for (int i = 0; i < kRequests; ++i) {
    const auto [head, body] = client.ReadResponse();
    ASSERT_EQ(body, "hello") << i;
  }
  sender.join();
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() == 0; }));
}

TEST_F(HttpServerTest, NoticesWhoLeavesBehindAFullReadAhead) {
  StartServer();
  for (const bool reset : {false, true}) {
    RawClient client(port());
    client.Send(kHold);
    auto responder = TakeHeld();
    std::atomic<bool> gone{false};
    responder->OnDisconnect([&] { gone.store(true); });
    client.Send(Repeat(kHello, 4500));  // 150 KB: what we leave fits into the kernel's buffers
    EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() >= 64 << 10; }));
    reset ? client.Reset() : client.Close();
    EXPECT_TRUE(Eventually([&] { return gone.load(); }));
  }
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() == 0; }));
}

std::string Upload(int size) {
  return "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(size) + "\r\n\r\n";
}

TEST_F(HttpServerTest, BoundsWhatAllUnfinishedRequestsHold) {
  StartServer({.max_buffered_bytes = 200'000});
  RawClient first(port());
  RawClient second(port());
  first.Send(Upload(150'000) + std::string(140'000, 'a'));
  ASSERT_TRUE(Eventually([&] { return server_->buffered_bytes() >= 140'000; }));
  second.Send(Upload(90'000) + std::string(80'000, 'b'));
  const auto [head, body] = second.ReadResponse();
  EXPECT_THAT(head, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(body, HasSubstr("200000"));
  EXPECT_TRUE(second.AtEnd());
  EXPECT_THAT(Ask(kHello), HasSubstr("hello"));  // small requests pass
  first.Send(std::string(10'000, 'a'));
  EXPECT_EQ(first.ReadResponse().second.size(), 150'000);
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() == 0; }));
  // And again there is room.
  EXPECT_THAT(Ask(Upload(180'000) + std::string(180'000, 'c')), HasSubstr("ccc"));
}

TEST_F(HttpServerTest, RequestsInHandlersCountToo) {
  StartServer();
  std::vector<std::shared_ptr<const void>> shares;
  server_->Stop();
  server_ = *HttpServer::Create({.port = 0});
  server_->Handle("POST", "/echo", [&](HttpRequest request, std::shared_ptr<HttpResponder> r) {
    r->Send(200, "text/plain", "kept");
    const std::lock_guard<std::mutex> lock(mutex_);
    shares.push_back(std::move(request.buffer_share));
  });
  ASSERT_TRUE(server_->Start().ok());
  Ask(Upload(50'000) + std::string(50'000, 'a'));
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() >= 50'000; }));
  const std::lock_guard<std::mutex> lock(mutex_);
  shares.clear();
  EXPECT_EQ(server_->buffered_bytes(), 0);
}

TEST_F(HttpServerTest, LargeBodiesArriveWhole) {
  StartServer();
  const std::string body = Repeat("0123456789", 300'000);
  for (const bool keep : {true, false}) {
    RawClient client(port());
    client.Send(kHold);
    auto responder = TakeHeld();
    responder->Send(200, "text/plain", body);
    EXPECT_EQ(client.ReadResponse().second, body);
    client.Send(kHello);
    EXPECT_EQ(client.ReadResponse().second, "hello") << keep;
  }
  // A HEAD has the length and no body.
  RawClient client(port());
  client.Send("HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), HasSubstr("Content-Length: 5\r\n"));
}

void SetOpenFileLimit(rlim_t soft, rlim_t hard) {
  const rlimit limit = {soft, hard};
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) std::_Exit(10);
}

// In a process of its own: a hard limit cannot be raised again.
TEST(HttpServerOpenFilesDeathTest, RaisesTheSoftLimitAndFitsConnectionsToTheHardOne) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto body = [] {
    SetOpenFileLimit(70, 100);
    auto server = HttpServer::Create({.port = 0, .num_threads = 1});
    if (!(*server)->Start().ok()) std::_Exit(1);
    rlimit limit = {};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur != 100) std::_Exit(2);
    std::vector<std::unique_ptr<RawClient>> clients;
    for (int i = 0; i < 100 - 64; ++i)
      clients.push_back(std::make_unique<RawClient>((*server)->port()));
    if (!Eventually([&] { return (*server)->num_connections() == 100 - 64; })) std::_Exit(3);
    RawClient one_more((*server)->port());
    const std::string answer = one_more.ReadAll();
    if (answer.find("HTTP/1.1 503") != 0) std::_Exit(4);
    if (answer.find("the limit is 36") == std::string::npos) std::_Exit(5);
    std::_Exit(0);
  };
  EXPECT_EXIT(body(), ::testing::ExitedWithCode(0), "at most 36 connections instead of 16384");
}

}  // namespace
}  // namespace nibble::server
