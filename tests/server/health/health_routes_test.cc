// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/health/health_routes.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "tests/engine/engine_fakes.h"
#include "tests/server/admission/fakes.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr int64_t kSecond = 1'000'000'000;

class HealthRoutesTest : public ::testing::Test {
 protected:
  HealthRoutesTest() {
    RegisterHealthRoutes(server_.get(), &health_);
    const absl::Status started = server_->Start();
    EXPECT_TRUE(started.ok()) << started;
  }
  ~HealthRoutesTest() override { server_->Stop(); }

  std::pair<std::string, json> Get(std::string_view path) {
    testing::RawClient client(server_->port());
    client.Send(fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path));
    auto [head, body] = client.ReadResponse();
    auto parsed = ParseJson(body);
    EXPECT_TRUE(parsed.ok()) << body;
    return {head, parsed.ok() ? *parsed : json()};
  }
  // What the three paths say.
  void Expect(int ready, int live, const json& body) {
    for (const std::string_view path : kHealthPaths) {
      const auto [head, answer] = Get(path);
      const int status = path == "/health/live" ? live : ready;
      EXPECT_THAT(head, StartsWith(fmt::format("HTTP/1.1 {}", status))) << path;
      EXPECT_THAT(head, HasSubstr("no-store"));
      EXPECT_EQ(head.find("Retry-After: ") != std::string::npos, status == 503) << head;
      EXPECT_EQ(answer, body) << path;
    }
  }

  nibble::testing::FakeClock clock_;
  testing::FakeEngine engine_;
  Health health_{{.step_timeout = std::chrono::seconds(60), .clock = &clock_}};
  std::unique_ptr<HttpServer> server_ = *HttpServer::Create({.port = 0, .num_threads = 1});
};

TEST_F(HealthRoutesTest, EveryState) {
  health_.SetLoading("loading weights");
  health_.SetProgress(1, 3);
  Expect(503, 200,
         {{"status", "loading"}, {"reason", "loading weights, 33 %"}, {"progress", 0.333}});
  health_.Watch(&engine_);
  Expect(200, 200, {{"status", "ready"}, {"reason", "requests are served"}});
  engine_.SetProgress({.pending_since_ns = clock_.NowNs()});
  clock_.Advance(61'234'500'000);
  Expect(503, 200,
         {{"status", "stalled"},
          {"reason",
           "no step has ended for 61 s with requests to serve, the limit is 60 s "
           "(--step-timeout)"},
          {"step_age_seconds", 61.235}});
  clock_.Advance(120 * kSecond);
  EXPECT_THAT(Get("/health/live").first, StartsWith("HTTP/1.1 503"));
  engine_.SetProgress({});
  engine_.SetHealth(absl::UnavailableError("rank 1 (pid 4711)"));
  Expect(503, 200, {{"status", "broken"}, {"reason", "rank 1 (pid 4711)"}});
  engine_.SetHealth(absl::InternalError("the device burnt down"));
  Expect(503, 503,
         {{"status", "failed"}, {"reason", "the engine has failed: the device burnt down"}});
  engine_.SetHealth(absl::OkStatus());
  health_.StartDraining();
  Expect(503, 200, {{"status", "draining"}, {"reason", "the server is shutting down"}});
}

TEST_F(HealthRoutesTest, AReasonMayHoldAnyBytes) {
  health_.Watch(&engine_);
  engine_.SetHealth(absl::UnavailableError("rank \"\xff\" is gone"));
  EXPECT_EQ(Get("/health").second["reason"], "rank \"\xEF\xBF\xBD\" is gone");
}

TEST_F(HealthRoutesTest, HeadIsAnsweredAndOtherMethodsAreNot) {
  testing::RawClient client(server_->port());
  client.Send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), StartsWith("HTTP/1.1 503"));
  testing::RawClient post(server_->port());
  post.Send("POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
  EXPECT_THAT(post.ReadUntil("\r\n\r\n"), StartsWith("HTTP/1.1 405"));
}

}  // namespace
}  // namespace nibble::server
