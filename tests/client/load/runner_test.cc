// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A run against a transport that answers when the test's clock says so.

#include "client/load/runner.h"

#include <algorithm>
#include <map>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::client {
namespace {

using ::testing::ElementsAre;
using State = RequestRecord::State;

constexpr int64_t kMs = 1'000'000;

class FakeClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns; }
  int64_t now_ns = 1'000'000'000'000;
};

// Each request's first token comes 10 ms after it was sent, its others every 5 ms after that. One
// event a Poll; without one the clock goes on to the deadline.
class FakeTransport final : public Transport {
 public:
  explicit FakeTransport(FakeClock* clock) : clock_(clock) {}

  void Start(size_t idx, const LoadRequest& request) override {
    starts.push_back(idx);
    ++active;
    most_active = std::max(most_active, active);
    ++resends;
    if (refused.contains(idx)) return due_.push_front({clock_->now_ns, idx, 0, -1});
    const int64_t last = request.output_tokens;
    for (int64_t token = 0; token < last; ++token) {
      Add(clock_->now_ns + (10 + 5 * token) * kMs, idx, token, last);
    }
  }

  void Poll(int64_t deadline_ns) override {
    if (due_.empty() || due_.front().at_ns > deadline_ns) {
      clock_->now_ns = std::max(clock_->now_ns, deadline_ns);
      return;
    }
    const Event event = due_.front();
    due_.erase(due_.begin());
    clock_->now_ns = std::max(clock_->now_ns, event.at_ns);
    if (event.last < 0) return End(event.idx, absl::UnavailableError("refused"));
    events_->OnChunk(event.idx);
    if (event.token + 1 < event.last) return;
    events_->OnFinishReason(event.idx, "length");
    events_->OnUsage(event.idx, 3, event.last);
    End(event.idx, absl::OkStatus());
  }

  void CancelAll() override {
    std::vector<size_t> open;
    for (const Event& event : due_) {
      if (std::find(open.begin(), open.end(), event.idx) == open.end()) open.push_back(event.idx);
    }
    due_.clear();
    for (const size_t idx : open) End(idx, absl::CancelledError("cancelled"));
  }
  std::vector<int64_t> TakeWakeDelays() override { return {}; }
  int64_t TakeResends() override { return std::exchange(resends, 0); }

  std::vector<size_t> starts;
  std::map<size_t, bool> refused;
  int64_t resends = 9;  // of another run
  int active = 0;
  int most_active = 0;

 private:
  struct Event {
    int64_t at_ns;
    size_t idx;
    int64_t token;
    int64_t last;
  };
  class Events : public std::vector<Event> {
   public:
    void push_front(const Event& event) { insert(begin(), event); }
  };

  void Add(int64_t at_ns, size_t idx, int64_t token, int64_t last) {
    const auto place =
        std::upper_bound(due_.begin(), due_.end(), at_ns,
                         [](int64_t time, const Event& event) { return time < event.at_ns; });
    due_.insert(place, {at_ns, idx, token, last});
  }
  void End(size_t idx, const absl::Status& status) {
    --active;
    events_->OnEnd(idx, status);
  }

  FakeClock* clock_;
  Events due_;
};

class RunnerTest : public ::testing::Test {
 protected:
  static std::vector<LoadRequest> Requests(const std::vector<int64_t>& tokens) {
    std::vector<LoadRequest> requests;
    for (const int64_t count : tokens) {
      requests.push_back({.text = "a", .output_tokens = count, .input_tokens = 8});
    }
    return requests;
  }
  RunOutcome Run(const std::vector<int64_t>& tokens, const std::vector<double>& arrivals,
                 int64_t max_concurrency = 0) {
    return RunRequests(Requests(tokens), arrivals, max_concurrency, &transport_, hooks_);
  }

  FakeClock clock_;
  FakeTransport transport_{&clock_};
  RunHooks hooks_{.clock = &clock_};
};

TEST_F(RunnerTest, TimesAreWrittenDown) {
  const RunOutcome outcome = Run({3, 1}, {0.0, 0.1});
  const RequestRecord& first = outcome.records[0];
  EXPECT_EQ(first.state, State::kCompleted);
  EXPECT_EQ(first.start_ns, 0);
  EXPECT_THAT(first.chunk_ns, ElementsAre(10 * kMs, 15 * kMs, 20 * kMs));
  EXPECT_EQ(first.end_ns, 20 * kMs);
  EXPECT_EQ(first.prompt_length, 8);
  EXPECT_EQ(first.prompt_tokens, 3);
  EXPECT_EQ(first.output_tokens, 3);
  EXPECT_EQ(first.finish_reason, "length");
  EXPECT_EQ(outcome.records[1].start_ns, 100 * kMs);
  EXPECT_EQ(outcome.duration_ns, 110 * kMs);
  EXPECT_EQ(outcome.num_resends, 2);
  EXPECT_FALSE(outcome.interrupted);
}

TEST_F(RunnerTest, ClosedLoopKeepsItsPlacesTaken) {
  const RunOutcome outcome = Run({1, 1, 1, 1, 1}, {0, 0, 0, 0, 0}, 2);
  EXPECT_EQ(transport_.most_active, 2);
  EXPECT_EQ(outcome.duration_ns, 30 * kMs);
  EXPECT_EQ(outcome.records[4].start_ns, 20 * kMs);
  EXPECT_EQ(outcome.records[4].ready_ns, 20 * kMs);
  EXPECT_EQ(outcome.records[4].arrival_ns, 0);
}

TEST_F(RunnerTest, AFailureIsNoAnswerAndDoesNotEndTheRun) {
  transport_.refused[1] = true;
  const RunOutcome outcome = Run({2, 2, 2}, {0, 0, 0}, 1);
  EXPECT_EQ(outcome.records[1].state, State::kFailed);
  EXPECT_EQ(outcome.records[1].error, "refused");
  EXPECT_EQ(outcome.records[1].end_ns, outcome.records[1].start_ns);
  EXPECT_GT(outcome.records[1].end_ns, 0);
  EXPECT_EQ(outcome.records[0].state, State::kCompleted);
  EXPECT_EQ(outcome.records[2].state, State::kCompleted);
}

TEST_F(RunnerTest, AnInterruptEndsWithWhatThereIs) {
  std::atomic<bool> interrupted{false};
  hooks_.interrupted = &interrupted;
  int64_t calls = 0;
  hooks_.progress = [&](const LoadProgress& progress) {
    ++calls;
    if (progress.seconds > 0.9) interrupted = true;
  };
  const RunOutcome outcome = Run({1, 1000, 1}, {0.0, 0.5, 100.0});
  EXPECT_TRUE(outcome.interrupted);
  EXPECT_GE(calls, 4);
  EXPECT_EQ(outcome.records[0].state, State::kCompleted);
  EXPECT_EQ(outcome.records[1].state, State::kInterrupted);
  EXPECT_GE(outcome.records[1].end_ns, 900 * kMs);
  EXPECT_EQ(outcome.records[2].state, State::kWaiting);
  EXPECT_EQ(transport_.active, 0);
  EXPECT_LT(outcome.duration_ns, 1'100 * kMs);
}

TEST_F(RunnerTest, ProgressCounts) {
  std::vector<LoadProgress> seen;
  hooks_.progress = [&](const LoadProgress& progress) { seen.push_back(progress); };
  Run({1, 1, 81}, {0, 0.1, 0.1});
  ASSERT_GE(seen.size(), 3u);
  const LoadProgress& late = seen[seen.size() - 2];
  EXPECT_EQ(late.total, 3);
  EXPECT_EQ(late.completed, 2);
  EXPECT_EQ(late.running, 1);
  EXPECT_NEAR(late.mean_ttft_ms, 10, 1e-9);
  EXPECT_NEAR(late.mean_itl_ms, 5, 1e-9);
  EXPECT_NEAR(late.chunks_per_s, 200, 10);
  EXPECT_EQ(seen.back().completed, 3);
  EXPECT_EQ(seen.back().running, 0);
}

TEST_F(RunnerTest, NothingToDo) { EXPECT_EQ(Run({}, {}).duration_ns, 0); }

}  // namespace
}  // namespace nibble::client
