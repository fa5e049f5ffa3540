// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_server.h"

#include <atomic>
#include <mutex>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/http/http_server_fixture.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using testing::Eventually;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RawClient;
using ::testing::StartsWith;

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

}  // namespace
}  // namespace nibble::server
