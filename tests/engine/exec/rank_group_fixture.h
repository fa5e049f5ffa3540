// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A driver (rank_group.h) of ranks that do what a test says (scripted_rank.h).
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/exec/rank_group.h"
#include "tests/engine/exec/group_time.h"
#include "tests/engine/exec/scripted_rank.h"
#include "tests/engine/exec/thread_hub.h"

namespace nibble::testing {

using engine::LocalExecutorOptions;
using engine::RankDescription;
using engine::RankGroup;
using engine::RankGroupObserver;
using engine::RankGroupOptions;
using engine::RankPatience;
using engine::StepPlan;
using std::chrono::milliseconds;

inline StepPlan SomePlan(int32_t token = 3) {
  StepPlan plan;
  plan.token_ids = {1, token};
  plan.positions = {0, 1};
  plan.slot_mapping = {0, 1};
  plan.query_start = {0, 2};
  plan.context_lens = {2};
  plan.block_tables = {0};
  plan.max_blocks_per_seq = 1;
  plan.logits_indices = {1};
  plan.sampling.resize(1);
  return plan;
}

class Observer final : public RankGroupObserver {
 public:
  // When a generation ends.
  void StopTime(GroupTime* time) { time_to_stop_ = time; }
  void OnRankLost(int rank, comm::LossReason reason, const std::string& why) override {
    const std::lock_guard lock(mutex_);
    lost_.emplace_back(rank, why);
    reasons_.push_back(reason);
  }
  void OnBroken(const std::string& why) override {
    if (GroupTime* const time = time_to_stop_; time != nullptr) time->Stop();
    const std::lock_guard lock(mutex_);
    broken_.push_back(why);
  }
  void OnFormed(uint64_t generation, double seconds) override {
    EXPECT_GE(seconds, 0.0);
    const std::lock_guard lock(mutex_);
    formed_.push_back(generation);
  }
  std::vector<std::pair<int, std::string>> lost() const {
    const std::lock_guard lock(mutex_);
    return lost_;
  }
  std::vector<comm::LossReason> reasons() const {
    const std::lock_guard lock(mutex_);
    return reasons_;
  }
  std::vector<std::string> broken() const {
    const std::lock_guard lock(mutex_);
    return broken_;
  }
  std::vector<uint64_t> formed() const {
    const std::lock_guard lock(mutex_);
    return formed_;
  }

 private:
  std::atomic<GroupTime*> time_to_stop_{nullptr};
  mutable std::mutex mutex_;
  std::vector<std::pair<int, std::string>> lost_;
  std::vector<comm::LossReason> reasons_;
  std::vector<std::string> broken_;
  std::vector<uint64_t> formed_;
};

// Of the group's own time, which passes while all ranks wait.
inline constexpr milliseconds kTimeout{300};
// It passes fast, and a start may take this machine its time.
inline constexpr std::chrono::hours kNever{1'000'000};

class RankGroupTest : public ::testing::Test {
 protected:
  absl::Status Start(int size = 2) {
    script_->size = size;
    script_->num_stages = num_stages_;
    script_->clock = time_;
    auto hub = std::make_unique<ThreadHub>(size, [script = script_](int rank, auto* channel) {
      ScriptedRank(rank, channel, script).Run();
    });
    hub_ = hub.get();
    time_->Watch(hub_);
    RankGroupOptions options;
    options.node_of_rank.assign(static_cast<size_t>(size), 0);
    options.group_id = "rank-group-test";
    options.vocab_size = Script::kVocabSize;
    options.row_size = Script::kRowSize;
    options.num_stages = num_stages_;
    options.load_interval = milliseconds(10);
    options.rank_timeout = kTimeout;
    options.start_timeout = kNever;
    options.patience = patience_;
    options.clock = time_;
    auto group = RankGroup::Start(
        std::move(hub), options,
        [this](const std::vector<RankDescription>& ranks) -> absl::StatusOr<LocalExecutorOptions> {
          if (!choose_error_.ok()) return choose_error_;
          EXPECT_EQ(static_cast<int>(ranks.size()), script_->size);
          EXPECT_EQ(ranks.back().weight_bytes, 999 + script_->size);
          return LocalExecutorOptions{.block_size = 4, .num_blocks = 10, .max_model_len = 40};
        },
        &observer_, [this](int64_t done, int64_t total) { num_progress_ += done <= total; });
    if (!group.ok()) return group.status();
    group_ = *std::move(group);
    return absl::OkStatus();
  }

  void ExpectStepWorks() {
    const auto output = group_->Execute(SomePlan(9));
    ASSERT_TRUE(output.ok()) << output.status();
    ASSERT_EQ(output->tokens.size(), 1U);
    EXPECT_EQ(output->tokens[0].token_id, TokenOf(SomePlan(9), 0));
  }
  void WaitUntilReady() {
    while (absl::IsUnavailable(group_->Ready())) std::this_thread::sleep_for(milliseconds(1));
    ASSERT_TRUE(group_->Ready().ok()) << group_->Ready();
  }
  // Time passes until a generation ends, and stands still then.
  void PassUntilBroken() {
    const size_t before = observer_.broken().size();
    observer_.StopTime(time_.get());
    time_->Run();
    while (observer_.broken().size() == before) std::this_thread::sleep_for(milliseconds(1));
    observer_.StopTime(nullptr);
  }
  // The observer is told a moment after Ready() is OK.
  void WaitUntilFormed(size_t num_generations) {
    while (observer_.formed().size() < num_generations) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
  // Execute must say that the blocks are lost, once, and work after.
  void ExpectRecovery(const ::testing::Matcher<std::string>& why) {
    const absl::Status status = group_->Execute(SomePlan()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), why);
    WaitUntilReady();
    ExpectStepWorks();
    ExpectStepWorks();
  }

  std::shared_ptr<Script> script_ = std::make_shared<Script>();
  absl::Status choose_error_;
  int num_stages_ = 1;
  RankPatience patience_;
  const std::shared_ptr<GroupTime> time_ = std::make_shared<GroupTime>();
  Observer observer_;
  std::atomic<int> num_progress_{0};
  ThreadHub* hub_ = nullptr;  // the group's
  std::unique_ptr<RankGroup> group_;
};

}  // namespace nibble::testing
