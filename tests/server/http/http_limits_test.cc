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

TEST_F(HttpServerTest, BoundsWhatAllAnswersHold) {
  StartServer({.max_queued_bytes = 8 << 20});
  const std::string body(8 << 20, 'x');  // the kernel takes half of it at most
  RawClient first(port(), 4096);
  first.Send(kHold);
  TakeHeld()->Send(200, "text/plain", body);
  RawClient second(port(), 4096);
  second.Send(kHold);
  TakeHeld()->Send(200, "text/plain", body);
  auto [head, text] = second.ReadResponse();
  EXPECT_THAT(head, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(head, HasSubstr("Retry-After: "));
  EXPECT_THAT(text, HasSubstr("8388608"));
  EXPECT_THAT(Ask(kHello), HasSubstr("hello"));  // small ones pass
  // A stream that is read goes on, one that is not is cut off.
  second.Send(kHold);
  const auto stream = TakeHeld();
  stream->StartStream(200, "text/plain");
  for (int i = 0; i < 10; ++i) {
    stream->Write("read " + std::to_string(i));
    EXPECT_THAT(second.ReadUntil("read " + std::to_string(i)), HasSubstr("read"));
  }
  std::atomic<bool> gone{false};
  stream->OnDisconnect([&] { gone.store(true); });
  for (int i = 0; i < 1024 && !gone.load(); ++i) stream->Write(std::string(8192, 'y'));
  EXPECT_TRUE(Eventually([&] { return gone.load(); }));
  // Once the answers are taken there is room again.
  EXPECT_EQ(first.ReadResponse().second.size(), body.size());
  RawClient third(port());
  third.Send(kHold);
  TakeHeld()->Send(200, "text/plain", body);
  EXPECT_EQ(third.ReadResponse().second.size(), body.size());
}

TEST_F(HttpServerTest, AWholeAnswerIsTakenAtALeastRate) {
  StartServer(
      {.max_queued_bytes = 64 << 20, .min_bytes_per_second = 32 << 20, .read_timeout_seconds = 3});
  const std::string body(32 << 20, 'x');
  RawClient client(port());
  client.Send(kHold);
  TakeHeld()->Send(200, "text/plain", body);
  // Some of it every moment; at this pace all of it would take much longer than two seconds.
  std::string taken;
  while (!client.ended() && taken.size() < body.size()) {
    taken += client.ReadSome();
    ::usleep(5000);
  }
  EXPECT_LT(taken.size(), body.size());
}

TEST_F(HttpServerTest, LimitsTheNumberOfHeaderFields) {
  StartServer();
  const std::string start = "GET /hello HTTP/1.1\r\nHost: x\r\n";
  EXPECT_THAT(Ask(start + Repeat("a:\r\n", 127) + "\r\n"), HasSubstr("hello"));
  const std::string answer = Ask(start + Repeat("a:\r\n", 128) + "\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(answer, HasSubstr("129 fields, the limit is 128"));
  // What fields take is counted while the request is not answered.
  RawClient client(port());
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n" + Repeat("a:\r\n", 100) +
              "\r\n1");
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() > 100 * 100; }));
  client.Send("2");
  EXPECT_EQ(client.ReadResponse().second, "12");
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() == 0; }));
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
    SetOpenFileLimit(70, 300);
    auto server = HttpServer::Create({.port = 0, .num_threads = 1, .reserved_files = 90});
    if (!(*server)->Start().ok()) std::_Exit(1);
    rlimit limit = {};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur != 300) std::_Exit(2);
    std::vector<std::unique_ptr<RawClient>> clients;
    constexpr int kFitting = 300 - 90 - 64 - 64;  // as many may be told that there are too many
    for (int i = 0; i < kFitting; ++i)
      clients.push_back(std::make_unique<RawClient>((*server)->port()));
    if (!Eventually([&] { return (*server)->num_connections() == kFitting; })) std::_Exit(3);
    RawClient one_more((*server)->port());
    const std::string answer = one_more.ReadAll();
    if (answer.find("HTTP/1.1 503") != 0) std::_Exit(4);
    if (answer.find("the limit is 82") == std::string::npos) std::_Exit(5);
    std::_Exit(0);
  };
  EXPECT_EXIT(body(), ::testing::ExitedWithCode(0), "at most 82 connections instead of 16384");
}

}  // namespace
}  // namespace nibble::server
