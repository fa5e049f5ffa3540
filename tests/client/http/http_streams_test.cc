// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Requests to servers that do what good ones never do.

#include "client/http/http_streams.h"

#include <condition_variable>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/clock.h"
#include "tests/client/http/scripted_server.h"

namespace nibble::client {
namespace {

using testing::Answer;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Peer;
using testing::ScriptedServer;

// What became of each request, and what a test does about it.
class Recorder final : public HttpEvents {
 public:
  struct Seen {
    std::vector<int> heads;
    std::string body;
    std::vector<absl::Status> ends;
  };
  void OnHead(uint64_t id, int status) override {
    seen[id].heads.push_back(status);
    if (on_head) on_head(id);
  }
  void OnBody(uint64_t id, std::string_view bytes) override {
    seen[id].body += bytes;
    if (on_body) on_body(id);
  }
  void OnEnd(uint64_t id, const absl::Status& status) override {
    seen[id].ends.push_back(status);
    if (on_end) on_end(id);
  }

  std::map<uint64_t, Seen> seen;
  std::function<void(uint64_t)> on_head, on_body, on_end;
};

class HttpStreamsTest : public ::testing::Test {
 protected:
  // How long after a request an end of its connection still means that nobody saw it: here either
  // ever or never, whatever the machine is busy with.
  static constexpr double kEver = 1e6;
  static constexpr double kNever = 0;

  void Open(const std::string& url, double resend_within_seconds = kNever) {
    auto streams = HttpStreams::Create(
        {.url = *Url::Parse(url), .resend_within_seconds = resend_within_seconds}, &events_);
    ASSERT_TRUE(streams.ok()) << streams.status();
    streams_ = *std::move(streams);
  }
  void Start(uint64_t id) {
    streams_->Start(id, {.method = "POST", .path = "/x", .body = "{}", .timeout_seconds = 60});
  }
  void Finish() {
    while (streams_->num_active() > 0) streams_->Poll(Clock::Monotonic().NowNs() + 10'000'000);
  }
  void Run(uint64_t id) {
    Start(id);
    Finish();
  }
  void ExpectAnswer(uint64_t id, const std::string& body) {
    const Recorder::Seen& seen = events_.seen[id];
    EXPECT_THAT(seen.heads, ::testing::ElementsAre(200)) << id;
    EXPECT_EQ(seen.body, body) << id;
    ASSERT_EQ(seen.ends.size(), 1u) << id;
    EXPECT_TRUE(seen.ends[0].ok()) << id << seen.ends[0];
  }
  absl::Status Failure(uint64_t id) {
    EXPECT_EQ(events_.seen[id].ends.size(), 1u);
    return events_.seen[id].ends.empty() ? absl::OkStatus() : events_.seen[id].ends[0];
  }

  Recorder events_;
  std::unique_ptr<HttpStreams> streams_;
};

TEST_F(HttpStreamsTest, AnInformationalAnswerIsNotTheAnswer) {
  ScriptedServer server([](Peer& peer) {
    peer.ReadRequest();
    peer.Send("HTTP/1.1 100 Continue\r\n\r\n" + Answer("first"));
    peer.ReadRequest();
    peer.Send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    peer.Send("HTTP/1.1 102 Processing\r\n\r\n");
    peer.Send(Answer("second"));
    peer.WaitForEnd();
  });
  Open(server.url());
  Run(1);
  Run(2);
  ExpectAnswer(1, "first");
  ExpectAnswer(2, "second");
  EXPECT_EQ(server.num_connections(), 1);
  streams_.reset();
}

TEST_F(HttpStreamsTest, BytesBehindAnAnswerAreNobodysAnswer) {
  ScriptedServer server([](Peer& peer) {
    for (std::string request; !(request = peer.ReadRequest()).empty();) {
      peer.Send(Answer(std::to_string(peer.idx)) + Answer("nobody asked"));
    }
  });
  Open(server.url());
  Run(1);
  Run(2);
  ExpectAnswer(1, "0");
  ExpectAnswer(2, "1");
  EXPECT_EQ(streams_->TakeResends(), 0);
  streams_.reset();
}

TEST_F(HttpStreamsTest, BytesOnAnIdleConnectionAreNobodysAnswer) {
  std::mutex mutex;
  std::condition_variable changed;
  bool idle = false;
  bool sent = false;
  ScriptedServer server([&](Peer& peer) {
    peer.ReadRequest();
    peer.Send(Answer(std::to_string(peer.idx)));
    if (peer.idx > 0) return peer.WaitForEnd();
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return idle; });
    peer.Send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
    sent = true;
    changed.notify_all();
    lock.unlock();
    peer.WaitForEnd();
  });
  Open(server.url());
  Run(1);
  {
    std::unique_lock<std::mutex> lock(mutex);
    idle = true;
    changed.notify_all();
    changed.wait(lock, [&] { return sent; });
  }
  Run(2);
  ExpectAnswer(1, "0");
  ExpectAnswer(2, "1");
  streams_.reset();
}

// Answers the first request of the first connection, and ends that at the second one.
void CloseAtTheSecond(Peer& peer) {
  peer.ReadRequest();
  peer.Send(Answer(std::to_string(peer.idx)));
  peer.ReadRequest();
  if (peer.idx > 0) peer.WaitForEnd();
}

TEST_F(HttpStreamsTest, WhatAClosedConnectionCannotHaveTakenIsSentAgain) {
  ScriptedServer server(CloseAtTheSecond);
  Open(server.url(), kEver);
  Run(1);
  Run(2);
  ExpectAnswer(1, "0");
  ExpectAnswer(2, "1");
  EXPECT_EQ(streams_->TakeResends(), 1);
  EXPECT_EQ(streams_->TakeResends(), 0);
  streams_.reset();
}

TEST_F(HttpStreamsTest, WhatTheServerMayHaveBegunWithFails) {
  ScriptedServer server(CloseAtTheSecond);
  Open(server.url(), kNever);
  Run(1);
  Run(2);
  ExpectAnswer(1, "0");
  EXPECT_EQ(Failure(2).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(Failure(2).message()), HasSubstr("cannot read from 127.0.0.1:"));
  EXPECT_EQ(streams_->TakeResends(), 0);
  EXPECT_EQ(server.num_connections(), 1);
  streams_.reset();
}

TEST_F(HttpStreamsTest, ANewConnectionThatEndsIsAFailure) {
  ScriptedServer server([](Peer& peer) { peer.ReadRequest(); });
  Open(server.url(), kEver);
  Run(1);
  EXPECT_EQ(Failure(1).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.num_connections(), 1);
}

TEST_F(HttpStreamsTest, HeadersAreInsteadOfOurs) {
  ScriptedServer server([](Peer& peer) { peer.Send(Answer(peer.ReadRequest())); });
  auto streams = HttpStreams::Create({.url = *Url::Parse(server.url()),
                                      .security = {.api_key = "k"},
                                      .headers = {{"content-type", "text/x"},
                                                  {"USER-AGENT", "me"},
                                                  {"accept", "a/b"},
                                                  {"X-More", "1"},
                                                  {"X-More", "2"}}},
                                     &events_);
  ASSERT_TRUE(streams.ok()) << streams.status();
  streams_ = *std::move(streams);
  Run(1);
  EXPECT_EQ(events_.seen[1].body, "POST /x HTTP/1.1\r\nHost: " + server.url().substr(7) +
                                      "\r\nAuthorization: Bearer k\r\ncontent-type: text/x\r\n"
                                      "USER-AGENT: me\r\naccept: a/b\r\nX-More: 1\r\nX-More: 2\r\n"
                                      "Content-Length: 2\r\n\r\n{}");
}

TEST_F(HttpStreamsTest, AConnectionThatIsNotMadeInTimeIsAFailure) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(listener, any, size), 0);
  ASSERT_EQ(::listen(listener, 0), 0);
  ASSERT_EQ(::getsockname(listener, any, &size), 0);
  // Nobody accepts, so that the queue is full after these.
  std::vector<int> others;
  for (int i = 0; i < 4; ++i) {
    others.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    ::connect(others.back(), any, size);
  }
  const std::string where = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  auto streams = HttpStreams::Create(
      {.url = *Url::Parse("http://" + where), .connect_timeout_seconds = 0.25}, &events_);
  ASSERT_TRUE(streams.ok()) << streams.status();
  streams_ = *std::move(streams);
  Run(1);
  EXPECT_EQ(Failure(1).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Failure(1).message(), "cannot connect to " + where + ": no answer in 0.25 s");
  for (const int fd : others) ::close(fd);
  ::close(listener);
}

// In pieces: each of these events is one that a request may be cancelled in.
TEST_F(HttpStreamsTest, ARequestMayBeCancelledInItsEvents) {
  ScriptedServer server([](Peer& peer) {
    while (!peer.ReadRequest().empty()) {
      peer.Send(
          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n");
    }
  });
  Open(server.url());
  const auto cancel = [&](uint64_t id) {
    if (id < 10) streams_->Cancel(id);
  };
  events_.on_head = [&](uint64_t id) {
    if (id == 1) cancel(id);
  };
  events_.on_body = [&](uint64_t id) {
    if (id == 2) cancel(id);
  };
  events_.on_end = [&](uint64_t id) {
    cancel(id);  // over already: nothing
    if (id < 10) Start(id + 10);
  };
  for (const uint64_t id : {1, 2, 3}) Run(id);
  EXPECT_TRUE(absl::IsCancelled(Failure(1)));
  EXPECT_EQ(events_.seen[1].body, "");
  EXPECT_TRUE(absl::IsCancelled(Failure(2)));
  EXPECT_EQ(events_.seen[2].body, "a");
  for (const uint64_t id : {3, 11, 12, 13}) ExpectAnswer(id, "ab");
  streams_.reset();
}

TEST_F(HttpStreamsTest, ARequestIsCancelledBeforeItsAnswer) {
  ScriptedServer server([](Peer& peer) {
    peer.ReadRequest();
    peer.WaitForEnd();
  });
  Open(server.url());
  Start(1);
  Start(2);
  streams_->Cancel(7);  // not there
  streams_->CancelAll();
  EXPECT_EQ(streams_->num_active(), 0);
  EXPECT_TRUE(absl::IsCancelled(Failure(1)));
  EXPECT_TRUE(absl::IsCancelled(Failure(2)));
  streams_.reset();
}

}  // namespace
}  // namespace nibble::client
