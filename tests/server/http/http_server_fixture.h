// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A server with the routes that the tests of its requests and of its connections' lives use.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "server/http/http_server.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {

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
    server_->SetObserver([this](const HttpOutcome& outcome) {
      const std::lock_guard<std::mutex> lock(mutex_);
      observed_.push_back(std::string(outcome.route) + " " + std::to_string(outcome.status));
    });
    if (guard_) server_->SetGuard(guard_);
    const absl::Status status = server_->Start();
    ASSERT_TRUE(status.ok()) << status;
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Stop();
  }
  int port() const { return server_->port(); }
  std::shared_ptr<HttpResponder> TakeHeld() {
    EXPECT_TRUE(testing::Eventually([&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return !held_.empty();
    }));
    const std::lock_guard<std::mutex> lock(mutex_);
    auto result = held_.front();
    held_.erase(held_.begin());
    return result;
  }
  std::string Ask(std::string_view bytes) {
    testing::RawClient client(port());
    client.Send(bytes);
    auto [head, body] = client.ReadResponse();
    return head + body;
  }
  bool Observed(const std::string& what) {
    return testing::Eventually([&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return std::find(observed_.begin(), observed_.end(), what) != observed_.end();
    });
  }

  HttpGuard guard_;  // set before StartServer; empty: none
  std::unique_ptr<HttpServer> server_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<HttpResponder>> held_;
  std::vector<std::string> observed_;
};

inline constexpr std::string_view kHello = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";
inline constexpr std::string_view kHold =
    "POST /hold HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";

}  // namespace nibble::server
