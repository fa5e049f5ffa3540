// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_server.h"

#include <atomic>
#include <mutex>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using testing::Eventually;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RawClient;
using ::testing::StartsWith;

// Keeps what the last request to /hold brought, so that the test answers it when it likes.
class HttpServerTest : public ::testing::Test {
 protected:
  void StartServer(HttpServerConfig config = {}) {
    config.port = 0;
    auto server = HttpServer::Create(config);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(server).value();
    server_->Handle("GET", "/hello", [](HttpRequest, std::shared_ptr<HttpResponder> responder) {
      responder->Send(200, "text/plain", "hello");
    });
    server_->Handle("POST", "/echo", [](HttpRequest request, std::shared_ptr<HttpResponder> r) {
      r->Send(200, "text/plain", request.body,
              {{"x-query", request.query}, {"x-echo", std::string(request.Header("x-in"))}});
    });
    server_->Handle("POST", "/hold", [this](HttpRequest, std::shared_ptr<HttpResponder> responder) {
      const std::lock_guard<std::mutex> lock(mutex_);
      held_.push_back(std::move(responder));
    });
    server_->Handle("POST", "/drop", [](HttpRequest, std::shared_ptr<HttpResponder>) {});
    server_->SetObserver([this](std::string_view handler, std::string_view, int status, double) {
      const std::lock_guard<std::mutex> lock(mutex_);
      observed_.push_back(std::string(handler) + " " + std::to_string(status));
    });
    const absl::Status status = server_->Start();
    ASSERT_TRUE(status.ok()) << status;
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Stop();
  }
  int port() const { return server_->port(); }
  std::shared_ptr<HttpResponder> TakeHeld() {
    EXPECT_TRUE(Eventually([&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return !held_.empty();
    }));
    const std::lock_guard<std::mutex> lock(mutex_);
    auto result = held_.front();
    held_.erase(held_.begin());
    return result;
  }
  std::string Ask(std::string_view bytes) {
    RawClient client(port());
    client.Send(bytes);
    auto [head, body] = client.ReadResponse();
    return head + body;
  }
  bool Observed(const std::string& what) {
    return Eventually([&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return std::find(observed_.begin(), observed_.end(), what) != observed_.end();
    });
  }

  std::unique_ptr<HttpServer> server_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<HttpResponder>> held_;
  std::vector<std::string> observed_;
};

constexpr std::string_view kHello = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";
constexpr std::string_view kHold = "POST /hold HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";

TEST_F(HttpServerTest, AnswersAndKeepsTheConnection) {
  StartServer();
  RawClient client(port());
  for (int i = 0; i < 3; ++i) {
    client.Send(kHello);
    const auto [head, body] = client.ReadResponse();
    EXPECT_THAT(head, StartsWith("HTTP/1.1 200 OK\r\n"));
    EXPECT_THAT(head, HasSubstr("Content-Type: text/plain\r\n"));
    EXPECT_EQ(body, "hello");
  }
  EXPECT_EQ(server_->num_connections(), 1);
  EXPECT_TRUE(Observed("/hello 200"));
}

TEST_F(HttpServerTest, ReadsRequestsSplitAnywhere) {
  StartServer();
  const std::string request =
      "POST /echo?a=b HTTP/1.1\r\nHost: x\r\nX-In: v\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\n\r\n";
  RawClient client(port());
  for (const char c : request) client.Send(std::string_view(&c, 1));
  const auto [head, body] = client.ReadResponse();
  EXPECT_THAT(head, HasSubstr("x-query: a=b\r\n"));
  EXPECT_THAT(head, HasSubstr("x-echo: v\r\n"));
  EXPECT_EQ(body, "abcdefg");
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  StartServer();
  RawClient client(port());
  std::string requests(kHold);
  for (int i = 0; i < 20; ++i) {
    requests +=
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n" + std::to_string(10 + i);
  }
  client.Send(requests);
  TakeHeld()->Send(200, "text/plain", "first");
  EXPECT_EQ(client.ReadResponse().second, "first");
  for (int i = 0; i < 20; ++i) EXPECT_EQ(client.ReadResponse().second, std::to_string(10 + i));
}

TEST_F(HttpServerTest, RefusesMalformedRequests) {
  StartServer();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"garbage\r\n\r\n", "400"},
      {"GET /hello HTTP/1.1\r\n\r\n", "400"},  // no Host
      {"GET /hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
      {"GET hello HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
      {"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
      {"GET /hello HTTP/2.0\r\nHost: x\r\n\r\n", "505"},
      {"GET /hello HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", "400"},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "400"},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", "400"},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
       "400"},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", "501"},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"},
      {"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "400"},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "400"},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: magic\r\nContent-Length: 1\r\n\r\n", "417"},
  };
  for (const auto& [request, status] : cases) {
    RawClient client(port());
    client.Send(request);
    EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 " + status)) << request;
    client.HalfClose();
    EXPECT_TRUE(client.AtEnd()) << request;
  }
  EXPECT_THAT(Ask(kHello), HasSubstr("hello"));
  EXPECT_TRUE(Observed("none 400"));
}

TEST_F(HttpServerTest, UnknownPathsAndMethods) {
  StartServer();
  EXPECT_THAT(Ask("GET /nope HTTP/1.1\r\nHost: x\r\n\r\n"), StartsWith("HTTP/1.1 404"));
  const std::string wrong = Ask("DELETE /hello HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(wrong, StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(wrong, HasSubstr("Allow: GET, HEAD\r\n"));
  EXPECT_THAT(Ask("OPTIONS /echo HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("Allow: POST\r\n"));
  EXPECT_THAT(Ask("BREW /hello HTTP/1.1\r\nHost: x\r\n\r\n"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Ask("GET http://example/hello HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("hello"));
  EXPECT_THAT(Ask("GET /%68ello HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("hello"));
}

TEST_F(HttpServerTest, HeadHasHeadersOnly) {
  StartServer();
  RawClient client(port());
  client.Send("HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), HasSubstr("Content-Length: 5\r\n"));
  client.Send(kHello);  // the next bytes must be the next answer's
  EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, Http10GetsNoChunks) {
  StartServer();
  RawClient client(port());
  client.Send("POST /hold HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
  auto responder = TakeHeld();
  responder->StartStream(200, "text/plain");
  responder->Write("one,");
  responder->Write("two");
  responder->EndStream();
  const std::string answer = client.ReadAll();
  EXPECT_THAT(answer, Not(HasSubstr("chunked")));
  EXPECT_THAT(answer, ::testing::EndsWith("\r\n\r\none,two"));
}

TEST_F(HttpServerTest, RefusesLargeBodiesByTheirHeader) {
  StartServer({.max_body_bytes = 1000});
  RawClient client(port());
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n");
  const auto [head, body] = client.ReadResponse();  // not a byte of the body was sent
  EXPECT_THAT(head, StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(body, HasSubstr("104857600"));
  EXPECT_THAT(body, HasSubstr("1000"));
  // A client that sends it all regardless still finds the answer.
  RawClient stubborn(port());
  stubborn.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n");
  stubborn.Send(std::string(20'000'000, 'x'));
  EXPECT_THAT(stubborn.ReadResponse().first, StartsWith("HTTP/1.1 413"));
  // Chunks tell no size in advance.
  RawClient chunked(port());
  chunked.Send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 3; ++i) chunked.Send("200\r\n" + std::string(512, 'x') + "\r\n");
  EXPECT_THAT(chunked.ReadResponse().first, StartsWith("HTTP/1.1 413"));
  // At the limit is fine.
  EXPECT_THAT(Ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" +
                  std::string(1000, 'x')),
              StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, RefusesLargeHeaders) {
  StartServer({.max_header_bytes = 1024});
  EXPECT_THAT(Ask("GET /hello HTTP/1.1\r\nHost: x\r\nA: " + std::string(2000, 'x')),
              StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(Ask("GET /" + std::string(2000, 'x')), StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(Ask("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" +
                  std::string(2000, 'x')),
              StartsWith("HTTP/1.1 431"));
}

TEST_F(HttpServerTest, InvitesTheBodyOfAnExpectantClient) {
  StartServer();
  RawClient client(port());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("ok");
  EXPECT_EQ(client.ReadResponse().second, "ok");
}

TEST_F(HttpServerTest, StreamsChunks) {
  StartServer();
  RawClient client(port());
  client.Send(kHold);
  auto responder = TakeHeld();
  responder->StartStream(200, "text/event-stream", {{"x-evil", "a\r\nb: c"}});
  const std::string head = client.ReadUntil("\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("x-evil: a  b: c\r\n"));
  responder->Write("data: 1\n\n");
  EXPECT_EQ(client.ReadUntil("\n\n\r\n"), "9\r\ndata: 1\n\n\r\n");
  responder->Write("");  // must not end the body
  responder->Write("x");
  responder->EndStream();
  EXPECT_EQ(client.ReadUntil("0\r\n\r\n"), "1\r\nx\r\n0\r\n\r\n");
  EXPECT_TRUE(Eventually([&] { return responder->queued_bytes() == 0; }));
  client.Send(kHello);
  EXPECT_EQ(client.ReadResponse().second, "hello");
}

TEST_F(HttpServerTest, ManyThreadsMayWriteAtOnce) {
  StartServer();
  RawClient client(port());
  client.Send(kHold);
  auto responder = TakeHeld();
  responder->StartStream(200, "text/plain");
  std::vector<std::thread> writers;
  for (int t = 0; t < 4; ++t) {
    writers.emplace_back([&] {
      for (int i = 0; i < 500; ++i) responder->Write("0123456789");
    });
  }
  for (std::thread& writer : writers) writer.join();
  responder->EndStream();
  EXPECT_EQ(client.ReadResponse().second.size(), 4 * 500 * 10);
}

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

TEST_F(HttpServerTest, DropsWhoFloodsBehindAnOpenRequest) {
  StartServer({.max_body_bytes = 1000, .max_header_bytes = 1000});
  RawClient client(port());
  client.Send(kHold);
  auto responder = TakeHeld();
  std::atomic<bool> gone{false};
  responder->OnDisconnect([&] { gone.store(true); });
  client.Send(std::string(10000, 'x'));
  EXPECT_TRUE(Eventually([&] { return gone.load(); }));
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
  EXPECT_TRUE(busy.AtEnd());
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
