// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/health/health.h"

#include <condition_variable>
#include <memory>
#include <mutex>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/health/health_metrics.h"
#include "tests/engine/engine_rig.h"
#include "tests/server/admission/fakes.h"

namespace nibble::server {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kSecond = 1'000'000'000;

class HealthTest : public ::testing::Test {
 protected:
  // At `now` seconds.
  HealthReport At(int64_t now) {
    clock_.Advance(now * kSecond - clock_.NowNs());
    return health_.Report();
  }
  void ExpectState(int64_t now, HealthState state, bool is_live) {
    const HealthReport report = At(now);
    EXPECT_EQ(ToString(report.state), ToString(state)) << now << ": " << report.reason;
    EXPECT_EQ(report.is_ready(), state == HealthState::kReady) << now;
    EXPECT_EQ(report.is_live(), is_live) << now;
  }

  nibble::testing::FakeClock clock_;
  testing::FakeEngine engine_;
  Health health_{{.step_timeout = seconds(60), .clock = &clock_}};
};

TEST_F(HealthTest, LoadingTellsHowFarItIs) {
  EXPECT_EQ(health_.Report().reason, "starting");
  ExpectState(10, HealthState::kLoading, true);
  health_.SetLoading("loading weights");
  EXPECT_EQ(health_.Report().reason, "loading weights");
  health_.SetProgress(43, 100);
  EXPECT_EQ(health_.Report().reason, "loading weights, 43 %");
  EXPECT_DOUBLE_EQ(health_.Report().loaded, 0.43);
  health_.SetProgress(1, 0);  // makes no sense, and changes nothing
  health_.SetProgress(300, 200);
  EXPECT_DOUBLE_EQ(health_.Report().loaded, 1.0);
  health_.SetLoading("starting the engine");
  EXPECT_EQ(health_.Report().reason, "starting the engine");
  ExpectState(1'000'000, HealthState::kLoading, true);  // however long it takes
  health_.Watch(&engine_);
  ExpectState(1'000'001, HealthState::kReady, true);
}

TEST_F(HealthTest, AStepThatTakesTooLongIsAStall) {
  health_.Watch(&engine_);
  engine_.SetProgress({.pending_since_ns = 100 * kSecond, .last_step_ns = 5 * kSecond});
  ExpectState(100, HealthState::kReady, true);
  ExpectState(160, HealthState::kReady, true);
  EXPECT_DOUBLE_EQ(health_.Report().step_age_seconds, 60.0);
  ExpectState(161, HealthState::kStalled, true);
  EXPECT_THAT(health_.Report().reason, HasSubstr("for 61 s"));
  EXPECT_THAT(health_.Report().reason, HasSubstr("the limit is 60 s"));
  ExpectState(280, HealthState::kStalled, true);  // 3 x 60 s
  EXPECT_THAT(health_.Report().reason, Not(HasSubstr("restart")));
  ExpectState(281, HealthState::kStalled, false);
  EXPECT_THAT(health_.Report().reason, HasSubstr("only a restart helps"));
  // It ends after all.
  engine_.SetProgress({.pending_since_ns = 100 * kSecond, .last_step_ns = 300 * kSecond});
  ExpectState(301, HealthState::kReady, true);
  EXPECT_DOUBLE_EQ(health_.Report().step_age_seconds, 1.0);
}

// A prompt of minutes is many steps; a step counts from its own start.
TEST_F(HealthTest, LongWorkIsNoStall) {
  health_.Watch(&engine_);
  engine_.SetProgress({.pending_since_ns = 10 * kSecond,
                       .step_since_ns = 950 * kSecond,
                       .last_step_ns = 900 * kSecond});
  ExpectState(1000, HealthState::kReady, true);
  ExpectState(1011, HealthState::kStalled, true);
}

TEST_F(HealthTest, IdleIsReadyHoweverLong) {
  health_.Watch(&engine_);
  engine_.SetProgress({.pending_since_ns = -1, .last_step_ns = 5 * kSecond});
  ExpectState(1'000'000, HealthState::kReady, true);
  EXPECT_EQ(health_.Report().step_age_seconds, 0.0);
}

// A clock that another thread read a moment later.
TEST_F(HealthTest, AStepOfTheFutureIsNew) {
  health_.Watch(&engine_);
  engine_.SetProgress({.pending_since_ns = 101 * kSecond});
  ExpectState(100, HealthState::kReady, true);
  EXPECT_EQ(health_.Report().step_age_seconds, 0.0);
}

TEST_F(HealthTest, RanksHaveTimeToMendThemselves) {
  Health health({.step_timeout = seconds(60), .self_repair = seconds(300), .clock = &clock_});
  health.Watch(&engine_);
  engine_.SetProgress({.pending_since_ns = 0});
  At(360);
  EXPECT_EQ(health.Report().state, HealthState::kStalled);
  EXPECT_TRUE(health.Report().is_live());
  At(361);
  EXPECT_FALSE(health.Report().is_live());
}

TEST_F(HealthTest, ABrokenGroupNeedsNoRestart) {
  health_.Watch(&engine_);
  engine_.SetHealth(absl::UnavailableError("rank 1 (pid 4711): killed by signal 9"));
  engine_.SetProgress({.pending_since_ns = 0});
  ExpectState(10'000, HealthState::kBroken, true);
  EXPECT_EQ(health_.Report().reason, "rank 1 (pid 4711): killed by signal 9");
  engine_.SetHealth(absl::OkStatus());
  engine_.SetProgress({.pending_since_ns = 0, .last_step_ns = 10'000 * kSecond});
  ExpectState(10'001, HealthState::kReady, true);
}

TEST_F(HealthTest, AFailedEngineDoes) {
  health_.Watch(&engine_);
  engine_.SetHealth(absl::InternalError("the device burnt down"));
  ExpectState(10, HealthState::kFailed, false);
  EXPECT_THAT(health_.Report().reason, HasSubstr("the device burnt down"));
  health_.StartDraining();
  ExpectState(11, HealthState::kFailed, false);
}

TEST_F(HealthTest, DrainingIsNeitherReadyNorKilled) {
  health_.Watch(&engine_);
  health_.StartDraining();
  ExpectState(10, HealthState::kDraining, true);
  engine_.SetProgress({.pending_since_ns = 10 * kSecond});
  ExpectState(1000, HealthState::kDraining, true);
  EXPECT_DOUBLE_EQ(health_.Report().step_age_seconds, 990.0);
  engine_.SetHealth(absl::UnavailableError("rank 1 is gone"));
  ExpectState(1001, HealthState::kDraining, true);
}

TEST_F(HealthTest, OneStateIsTheMetric) {
  health_.Watch(&engine_);
  health_.StartDraining();
  const std::string text = HealthMetrics(health_.Report(), "a \"model\" \\\n");
  EXPECT_THAT(
      text,
      HasSubstr(
          R"(nibble:health_state{engine="0",model_name="a \"model\" \\\n",state="draining"} 1)"));
  for (const char* state : {"loading", "ready", "stalled", "broken", "failed"}) {
    EXPECT_THAT(text, HasSubstr(fmt::format("state=\"{}\"}} 0", state)));
  }
  EXPECT_THAT(text, HasSubstr(R"(nibble:ready{engine="0",model_name="a \"model\" \\\n"} 0)"));
  EXPECT_THAT(text,
              HasSubstr(R"(nibble:step_age_seconds{engine="0",model_name="a \"model\" \\\n"} 0)"));
}

// The whole way: a real engine whose executor hangs, and comes back.
TEST(HealthOfAnEngineTest, AnExecutorThatHangs) {
  nibble::testing::EngineRig rig;
  nibble::testing::FakeDevice& device = rig.device();
  Health health({.step_timeout = seconds(60), .clock = &device.clock});
  health.Watch(&rig.engine());
  device.clock.Advance(5000 * kSecond);
  EXPECT_TRUE(health.Report().is_ready());
  device.CloseGate();
  const auto sink = rig.Submit(nibble::testing::Count(3), {.max_tokens = 4, .ignore_eos = true});
  device.WaitForSteps(1);
  device.clock.Advance(60 * kSecond);
  EXPECT_TRUE(health.Report().is_ready()) << health.Report().reason;
  device.clock.Advance(kSecond);
  EXPECT_EQ(health.Report().state, HealthState::kStalled);
  EXPECT_TRUE(health.Report().is_live());
  device.clock.Advance(120 * kSecond);
  EXPECT_FALSE(health.Report().is_live());
  device.OpenGate();
  sink->WaitForEnd();
  EXPECT_TRUE(health.Report().is_ready()) << health.Report().reason;
}

}  // namespace
}  // namespace nibble::server
