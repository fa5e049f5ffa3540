// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/health/health_log.h"

#include <chrono>
#include <mutex>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/engine_fakes.h"
#include "tests/server/admission/fakes.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using testing::Eventually;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(HealthLogTest, TellsWhenTheServerStopsBeingReadyAndWhenItIsReadyAgain) {
  nibble::testing::FakeClock clock;
  testing::FakeEngine engine;
  Health health({.step_timeout = std::chrono::seconds(60), .clock = &clock});
  std::mutex mutex;
  std::string text;  // guarded by mutex
  {
    const HealthLog log(&health, std::chrono::milliseconds(1), [&](bool, const std::string& line) {
      const std::lock_guard lock(mutex);
      text += line + "\n";
    });
    health.Watch(&engine);
    engine.SetProgress({.pending_since_ns = clock.NowNs()});
    clock.Advance(61'000'000'000);
    const auto told = [&](const char* what) {
      return Eventually([&] {
        const std::lock_guard lock(mutex);
        return text.find(what) != std::string::npos;
      });
    };
    EXPECT_TRUE(told("health: stalled: no step has ended for 61 s"));
    clock.Advance(120'000'000'000);
    EXPECT_TRUE(told("only a restart helps"));
    engine.SetProgress({});
    EXPECT_TRUE(told("health: ready again, after stalled"));
    engine.SetHealth(absl::UnavailableError("rank 1 is gone"));
    EXPECT_TRUE(told("health: broken: rank 1 is gone"));
    health.StartDraining();
    engine.SetHealth(absl::OkStatus());
  }
  EXPECT_THAT(text, Not(HasSubstr("draining")));
}

}  // namespace
}  // namespace nibble::server
