// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/http/http_server.h"
#include "tests/server/http/http_server_fixture.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using testing::Eventually;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RawClient;
using ::testing::StartsWith;

TEST_F(HttpServerTest, NoticesADisconnectWhileNothingIsWritten) {
  StartServer();
  for (const bool reset : {false, true}) {
    RawClient client(port());
    client.Send(kHold);
    auto responder = TakeHeld();
    std::atomic<int> calls{0};
    responder->OnDisconnect([&] { calls.fetch_add(1); });
    EXPECT_EQ(calls.load(), 0);
    reset ? client.Reset() : client.Close();
    EXPECT_TRUE(Eventually([&] { return calls.load() == 1; }));
    // Late answers go nowhere; a late callback is called at once.
    responder->Send(200, "text/plain", "too late");
    responder->OnDisconnect([&] { calls.fetch_add(1); });
    EXPECT_EQ(calls.load(), 2);
    EXPECT_TRUE(Observed("/hold 499"));
  }
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 0; }));
}

TEST_F(HttpServerTest, NoDisconnectAfterTheAnswerIsComplete) {
  StartServer();
  std::atomic<int> calls{0};
  auto alive = std::make_shared<int>(0);
  {
    RawClient client(port());
    client.Send(kHold);
    auto responder = TakeHeld();
    responder->OnDisconnect([&calls, alive] { calls.fetch_add(1); });
    responder->Send(200, "text/plain", "done");
    EXPECT_EQ(alive.use_count(), 1);  // the callback was released with the answer
    EXPECT_EQ(client.ReadResponse().second, "done");
  }
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 0; }));
  EXPECT_EQ(calls.load(), 0);
}

TEST_F(HttpServerTest, AHalfClosedClientStillGetsAnImmediateAnswer) {
  StartServer();
  RawClient client(port());
  client.Send(kHello);
  client.HalfClose();
  EXPECT_EQ(client.ReadResponse().second, "hello");
}

TEST_F(HttpServerTest, ADroppedRequestIsAnsweredWith500) {
  StartServer();
  EXPECT_THAT(Ask("POST /drop HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
              StartsWith("HTTP/1.1 500"));
}

TEST_F(HttpServerTest, ADroppedStreamEndsWithoutItsLastChunk) {
  StartServer();
  RawClient client(port());
  client.Send(kHold);
  auto responder = TakeHeld();
  responder->StartStream(200, "text/plain");
  responder->Write("part");
  client.ReadUntil("part\r\n");
  responder.reset();
  EXPECT_THAT(client.ReadAll(), Not(HasSubstr("0\r\n\r\n")));
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpServerTest, TellsHowMuchASlowReaderLeaves) {
  StartServer();
  RawClient client(port(), 4096);
  client.Send(kHold);
  auto responder = TakeHeld();
  responder->StartStream(200, "text/plain");
  const std::string chunk(1 << 16, 'x');
  int chunks = 0;
  while (responder->queued_bytes() < (1 << 20) && chunks < 2000) {
    responder->Write(chunk);
    ++chunks;
  }
  EXPECT_LT(chunks, 2000);
  std::atomic<bool> gone{false};
  responder->OnDisconnect([&] { gone.store(true); });
  client.Close();
  EXPECT_TRUE(Eventually([&] { return gone.load(); }));
  EXPECT_EQ(responder->queued_bytes(), 0);
}

TEST_F(HttpServerTest, LimitsConnections) {
  StartServer({.num_threads = 1, .max_connections = 2});
  RawClient first(port());
  RawClient second(port());
  ASSERT_TRUE(Eventually([&] { return server_->num_connections() == 2; }));
  {
    RawClient third(port());
    EXPECT_THAT(third.ReadResponse().first, StartsWith("HTTP/1.1 503"));
  }
  first.Send(kHello);
  EXPECT_EQ(first.ReadResponse().second, "hello");
  first.Close();
  ASSERT_TRUE(Eventually([&] { return server_->num_connections() == 1; }));
  EXPECT_THAT(Ask(kHello), HasSubstr("hello"));
}

TEST_F(HttpServerTest, TimesOutUnfinishedRequests) {
  StartServer({.read_timeout_seconds = 1});
  RawClient slow(port());
  RawClient idle(port());
  RawClient busy(port());
  busy.Send(kHold);
  slow.Send("GET /hello HT");
  EXPECT_THAT(slow.ReadResponse().first, StartsWith("HTTP/1.1 408"));
  EXPECT_TRUE(idle.AtEnd());
  // A request being answered has no deadline of ours.
  TakeHeld()->Send(200, "text/plain", "late");
  EXPECT_EQ(busy.ReadResponse().second, "late");
}

TEST_F(HttpServerTest, ARequestHasItsTimeFromItsFirstByteOn) {
  StartServer({.read_timeout_seconds = 2});
  RawClient client(port());
  ::usleep(1'500'000);
  client.Send("GET /hello HT");
  ::usleep(1'000'000);
  client.Send("TP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 200"));
}

// What is refused after its header still has its name, its route and its method.
TEST_F(HttpServerTest, RefusalsOfBodiesHaveTheRequestsName) {
  StartServer({.max_body_bytes = 100, .read_timeout_seconds = 1});
  const std::string head = "POST /echo HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"413", head + "Content-Length: 101\r\n\r\n"},
      {"413", head + "Transfer-Encoding: chunked\r\n\r\n65\r\n" + std::string(101, 'x')},
      {"417", head + "Expect: magic\r\nContent-Length: 1\r\n\r\n"},
      {"408", head + "Content-Length: 5\r\n\r\n12"}};
  for (const auto& [status, request] : cases) {
    observed_.clear();
    const std::string answer = Ask(request);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 " + status));
    EXPECT_THAT(answer, HasSubstr("x-request-id: mine\r\n"));
    EXPECT_TRUE(Observed("/echo " + status));
  }
  EXPECT_THAT(Ask("POST /echo HTTP/1.1\r\nX-Request-Id: mine\r\n\r\n"),
              HasSubstr("x-request-id: mine\r\n"));
  EXPECT_TRUE(Observed("none 400"));
}

TEST_F(HttpServerTest, InvitesABodyOnceAndOnlyWhereNoneIsThere) {
  StartServer();
  const std::string head =
      "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
  RawClient client(port());
  client.Send(head);
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("abc");
  EXPECT_EQ(client.ReadResponse().second, "abc");
  client.Send(head + "ab");
  ::usleep(20'000);
  client.Send("c");
  EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, IgnoresEmptyLinesBeforeARequest) {
  StartServer();
  RawClient client(port());
  for (const char* between : {"\r\n", "", "\r\n\r\n"}) {
    client.Send(between + std::string(kHello));
    EXPECT_EQ(client.ReadResponse().second, "hello");
  }
  client.Send("\r");
  ::usleep(20'000);
  client.Send("\n" + std::string(kHello) + "\r\n");
  EXPECT_EQ(client.ReadResponse().second, "hello");
  EXPECT_TRUE(Eventually([&] { return server_->buffered_bytes() == 0; }));
  // Line ends are two bytes, and whoever sends one is told.
  EXPECT_THAT(Ask("GET /hello HTTP/1.1\nHost: x\n\n"), HasSubstr("a line ends with LF"));
}

TEST_F(HttpServerTest, DrainsWhenToldToAcceptNoMore) {
  StartServer();
  RawClient idle(port());
  RawClient busy(port());
  busy.Send(kHold);
  auto responder = TakeHeld();
  idle.Send(kHello);
  idle.ReadResponse();
  server_->StopAccepting();
  EXPECT_TRUE(idle.AtEnd());
  // Each io thread closes its own listener, a little later.
  EXPECT_TRUE(Eventually([&] { return !RawClient(port()).connected(); }));
  responder->Send(200, "text/plain", "answered");
  EXPECT_EQ(busy.ReadResponse().second, "answered");
  EXPECT_TRUE(busy.Send(kHello));  // it could not know
  EXPECT_TRUE(busy.AtEnd());
  busy.Close();
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 0; }));
}

TEST_F(HttpServerTest, RespondersOutliveTheServer) {
  StartServer();
  RawClient client(port());
  client.Send(kHold);
  auto responder = TakeHeld();
  std::atomic<int> calls{0};
  responder->OnDisconnect([&] { calls.fetch_add(1); });
  server_->Stop();
  EXPECT_EQ(calls.load(), 1);
  server_->Stop();
  server_.reset();
  responder->StartStream(200, "text/plain");
  responder->Write("nobody");
  responder->EndStream();
  EXPECT_EQ(responder->queued_bytes(), 0);
}

// Clients leave, writers write and the server stops, all at once: run under sanitizers.
TEST_F(HttpServerTest, SurvivesRacingShutdown) {
  for (int round = 0; round < 10; ++round) {
    StartServer({.num_threads = 3});
    std::atomic<bool> stop{false};
    std::thread writer([&] {
      while (!stop.load()) {
        std::vector<std::shared_ptr<HttpResponder>> held;
        {
          const std::lock_guard<std::mutex> lock(mutex_);
          held.swap(held_);
        }
        for (const auto& responder : held) {
          responder->OnDisconnect([responder] { responder->Write("x"); });
          responder->StartStream(200, "text/plain");
          for (int i = 0; i < 20; ++i) responder->Write("some text");
          responder->EndStream();
        }
      }
    });
    std::vector<std::thread> clients;
    for (int c = 0; c < 4; ++c) {
      clients.emplace_back([port = port(), c] {
        for (int i = 0; i < 20; ++i) {
          RawClient client(port);
          client.Send(kHold);
          if (i % 3 == 0) client.Reset();
          if (i % 3 == 1) client.ReadUntil("some");
          if (i % 7 == c) client.HalfClose();
        }
      });
    }
    ::usleep(static_cast<useconds_t>(2000 * round));
    server_->Stop();
    for (std::thread& client : clients) client.join();
    stop.store(true);
    writer.join();
    const std::lock_guard<std::mutex> lock(mutex_);
    held_.clear();
  }
}

TEST(HttpServerStart, RefusesTakenPortsAndBadConfigs) {
  auto first = HttpServer::Create({.port = 0});
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE((*first)->Start().ok());
  auto second = HttpServer::Create({.port = (*first)->port()});
  ASSERT_TRUE(second.ok());
  const absl::Status status = (*second)->Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string((*first)->port())));

  EXPECT_FALSE(HttpServer::Create({.host = "example.org"}).ok());
  EXPECT_FALSE(HttpServer::Create({.host = ""}).ok());
  EXPECT_FALSE(HttpServer::Create({.port = 65536}).ok());
  EXPECT_FALSE(HttpServer::Create({.num_threads = 0}).ok());
  EXPECT_FALSE(HttpServer::Create({.max_body_bytes = -1}).ok());
  auto elsewhere = HttpServer::Create({.host = "203.0.113.7", .port = 0});  // not ours (RFC 5737)
  ASSERT_TRUE(elsewhere.ok());
  EXPECT_EQ((*elsewhere)->Start().code(), absl::StatusCode::kUnavailable);
}

TEST(HttpServerStart, ListensOnLocalhostAndIpv6) {
  for (const char* host : {"localhost", "0.0.0.0", "::", "[::]"}) {
    auto server = HttpServer::Create({.host = host, .port = 0});
    ASSERT_TRUE(server.ok()) << server.status();
    (*server)->Handle("GET", "/", [](HttpRequest request, std::shared_ptr<HttpResponder> r) {
      r->Send(200, "text/plain", request.remote_address);
    });
    if (const absl::Status status = (*server)->Start(); !status.ok()) {
      // Machines without IPv6 exist.
      EXPECT_THAT(std::string(host), HasSubstr(":")) << status;
      continue;
    }
    RawClient client((*server)->port());
    client.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_THAT(client.ReadResponse().second, HasSubstr("127.0.0.1"));
  }
}

}  // namespace
}  // namespace nibble::server
