// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that speak the protocol and compute nothing, for tests of the driver: a test decides what
// goes wrong. A step's tokens follow from its plan.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "comm/all_reduce.h"
#include "comm/ranks/frame_channel.h"
#include "engine/exec/group_clock.h"
#include "engine/exec/rank_protocol.h"

namespace nibble::testing {

// Shared by a test and its ranks.
struct Script {
  static constexpr int64_t kVocabSize = 100;
  static constexpr int64_t kRowSize = 64;
  static constexpr int64_t kNumLayers = 3;

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex:
  int size = 2;
  int num_stages = 1;
  int64_t num_experts = 0;
  std::map<int, engine::ExpertLoad> loads;  // what ranks tell, by rank
  uint64_t num_load_questions = 0;
  std::set<int> silent_in_step;         // ranks that do not answer steps, nor anything else then
  std::map<int, absl::Status> in_step;  // what ranks answer to their next step
  std::set<int> die_in_step;            // their next step ends them
  std::map<int, absl::Status> in_prepare;
  std::map<int, absl::Status> always_in_prepare;
  std::set<int> hung_in_prepare;  // ranks that answer pings and nothing else
  std::set<int> hung_in_connect;
  std::set<int> hung_in_allocate;
  std::shared_ptr<engine::GroupClock> clock;
  std::chrono::milliseconds start_time{0};  // of that clock, from the start to the first word
  std::set<int> mute;                       // ranks whose next life says no word
  std::map<int, engine::RankActivity> at;   // what ranks say that they are at, but generation
  std::vector<std::string> bind_addresses;  // by kPrepare to rank 1
  std::map<int, absl::Status> in_connect;
  std::map<int, absl::Status> in_load;
  std::set<int> die_in_load;
  std::set<int> die_in_prepare;
  std::map<int, comm::Frame> instead_of_step_done;        // sent by the rank at its next step
  bool hold_steps = false;                                // as in a collective that waits
  int steps_to_answer = std::numeric_limits<int>::max();  // by the last stage; others wait in it
  int num_steps = 0;                                      // that came to rank 0
  std::vector<std::string> policies_told;                 // by kConnect to rank 0
  std::map<int, std::string> policy_told;                 // by the last kConnect, by rank
  std::map<int, std::string> policy_of;  // what ranks have chosen, if not SomePolicy()
  std::vector<uint64_t> aborted;         // generations that rank 0 was told to leave
  std::vector<uint64_t> clean_from;      // by kPrepare to rank 0

  void With(const std::function<void(Script*)>& change) {
    const std::lock_guard lock(mutex);
    change(this);
    changed.notify_all();
  }
};

inline std::string SomePolicy() {
  return comm::Serialize({.choices = {{.max_bytes = std::numeric_limits<int64_t>::max(),
                                       .algorithm = comm::Algorithm::kOneShot,
                                       .codec = {}}}});
}

inline int32_t TokenOf(const engine::StepPlan& plan, size_t sample) {
  const auto at = static_cast<size_t>(plan.logits_indices[sample]);
  return (plan.token_ids[at] * 7 + plan.positions[at]) % static_cast<int32_t>(Script::kVocabSize);
}

class ScriptedRank {
 public:
  ScriptedRank(int rank, comm::FrameChannel* channel, std::shared_ptr<Script> script)
      : rank_(rank), channel_(channel), script_(std::move(script)) {}

  void Run() {
    if (!WaitForFirstWord()) return;
    std::thread answers([this] { Answer(); });
    for (bool lives = true; lives;) {
      absl::StatusOr<comm::Frame> frame = Next();
      lives = frame.ok() && Do(*frame);
    }
    script_->With([this](Script*) { ended_ = true; });
    answers.join();
  }

 private:
  using RankMessage = engine::RankMessage;

  void Send(const comm::Frame& frame) { channel_->Send(frame).IgnoreError(); }
  absl::StatusOr<comm::Frame> Next() {
    if (unread_.empty()) return channel_->Receive();
    comm::Frame frame = std::move(unread_.front());
    unread_.pop_front();
    return frame;
  }
  // What the script says for this rank, once.
  template <typename Map>
  auto Take(Map* map) {
    const std::lock_guard lock(script_->mutex);
    return map->extract(rank_);
  }

  // False when it ended before.
  bool WaitForFirstWord() {
    const bool is_mute = !Take(&script_->mute).empty();
    std::unique_lock lock(script_->mutex);
    if (script_->clock == nullptr) return true;
    const auto first_word = script_->clock->Now() + script_->start_time;
    lock.unlock();
    // Pings come all the time.
    while (is_mute || script_->clock->Now() < first_word) {
      absl::StatusOr<comm::Frame> frame = channel_->Receive();
      if (!frame.ok()) return false;
      unread_.push_back(*std::move(frame));
    }
    return true;
  }
  // False when the rank dies.
  bool Do(const comm::Frame& frame) {
    switch (static_cast<RankMessage>(frame.type)) {
      case RankMessage::kPing:
        Pong(*engine::PingPayload::Decode(frame.payload));
        return true;
      case RankMessage::kHello:
        return Load();
      case RankMessage::kAllocate:
        if (!Take(&script_->hung_in_allocate).empty()) return true;
        Send(engine::MakeFrame(RankMessage::kAllocated));
        return true;
      case RankMessage::kPrepare:
        return Prepare(*engine::PreparePayload::Decode(frame.payload));
      case RankMessage::kConnect:
        Connect(*engine::ConnectPayload::Decode(frame.payload));
        return true;
      case RankMessage::kStep:
        return Step(*engine::StepPayload::Decode(frame.payload));
      case RankMessage::kTellExpertLoad:
        TellLoad();
        return true;
      case RankMessage::kAbort: {
        const std::lock_guard lock(script_->mutex);
        answers_.clear();
        if (rank_ == 0) {
          script_->aborted.push_back(engine::AbortPayload::Decode(frame.payload)->generation);
          script_->changed.notify_all();
        }
        return true;
      }
      case RankMessage::kExit:
        return false;
      default:
        ADD_FAILURE() << "the driver sent type " << frame.type;
        return false;
    }
  }

  // Steps are answered as the script lets them, pings at once.
  void Answer() {
    std::unique_lock lock(script_->mutex);
    for (;;) {
      script_->changed.wait(
          lock, [this] { return ended_ || (!answers_.empty() && script_->steps_to_answer > 0); });
      if (ended_) return;
      --script_->steps_to_answer;
      const comm::Frame answer = std::move(answers_.front());
      answers_.pop_front();
      lock.unlock();
      Send(answer);
      lock.lock();
    }
  }

  void Pong(const engine::PingPayload& ping) {
    engine::PongPayload pong{.number = ping.number};
    {
      const std::lock_guard lock(script_->mutex);
      // A rank that works unless it is said otherwise.
      pong.activity = {.changes = ping.number};
      if (const auto at = script_->at.find(rank_); at != script_->at.end()) {
        pong.activity = at->second;
      }
    }
    pong.activity.generation = generation_;
    Send(engine::MakeFrame(pong));
  }

  void TellLoad() {
    const std::lock_guard lock(script_->mutex);
    ++script_->num_load_questions;
    Send(engine::MakeFrame(
        engine::ExpertLoadPayload{.process = process_, .load = script_->loads[rank_]}));
    script_->changed.notify_all();
  }

  bool Load() {
    Send(engine::MakeFrame(engine::ProgressPayload{.bytes_done = 5, .bytes_total = 10}));
    if (!Take(&script_->die_in_load).empty()) return false;
    if (const auto failed = Take(&script_->in_load)) {
      Send(engine::MakeFrame(engine::FailedPayload{.status = failed.mapped()}));
      return true;
    }
    Send(engine::MakeFrame(
        engine::LoadedPayload{.rank = rank_,
                              .size = script_->size,
                              .num_stages = script_->num_stages,
                              .vocab_size = Script::kVocabSize,
                              .hidden_size = Script::kRowSize,
                              .description = {.weight_bytes = 1000 + rank_,
                                              .kv_block_bytes = 32,
                                              .num_layers = Script::kNumLayers,
                                              .num_experts = script_->num_experts}}));
    return true;
  }

  bool Prepare(const engine::PreparePayload& payload) {
    EXPECT_EQ(payload.place.rank, rank_);
    EXPECT_EQ(payload.num_stages, script_->num_stages);
    generation_ = payload.place.generation;
    if (!Take(&script_->die_in_prepare).empty()) return false;
    if (rank_ == 0) {
      const std::lock_guard lock(script_->mutex);
      script_->clean_from.push_back(payload.clean_from);
    }
    if (!Take(&script_->hung_in_prepare).empty()) return true;
    {
      const std::lock_guard lock(script_->mutex);
      if (rank_ == 1) script_->bind_addresses.push_back(payload.place.bind_address);
      if (const auto at = script_->always_in_prepare.find(rank_);
          at != script_->always_in_prepare.end()) {
        Send(engine::MakeFrame(engine::GenerationFailedPayload{generation_, at->second}));
        return true;
      }
    }
    if (const auto failed = Take(&script_->in_prepare)) {
      Send(engine::MakeFrame(engine::GenerationFailedPayload{generation_, failed.mapped()}));
      return true;
    }
    Send(engine::MakeFrame(engine::PreparedPayload{generation_, Address(rank_)}));
    return true;
  }

  void Connect(const engine::ConnectPayload& payload) {
    for (int peer = 0; peer < script_->size; ++peer) {
      EXPECT_EQ(payload.addresses.at(static_cast<size_t>(peer)), Address(peer));
    }
    {
      const std::lock_guard lock(script_->mutex);
      if (rank_ == 0) script_->policies_told.push_back(payload.policy);
      script_->policy_told[rank_] = payload.policy;
    }
    if (!Take(&script_->hung_in_connect).empty()) return;
    if (const auto failed = Take(&script_->in_connect)) {
      Send(engine::MakeFrame(engine::GenerationFailedPayload{generation_, failed.mapped()}));
      return;
    }
    std::string policy = SomePolicy();
    {
      const std::lock_guard lock(script_->mutex);
      if (const auto own = script_->policy_of.find(rank_); own != script_->policy_of.end()) {
        policy = own->second;
      }
    }
    Send(engine::MakeFrame(engine::ConnectedPayload{generation_, policy}));
  }

  bool Step(const engine::StepPayload& payload) {
    // The generation may have ended before the step arrived.
    if (payload.generation != generation_) {
      Send(engine::MakeFrame(
          engine::StepDonePayload{.generation = payload.generation,
                                  .number = payload.number,
                                  .status = absl::AbortedError("not in this generation")}));
      return true;
    }
    {
      const std::lock_guard lock(script_->mutex);
      if (rank_ == 0) ++script_->num_steps;
      script_->changed.notify_all();
      if (script_->hold_steps) return true;
    }
    if (!Take(&script_->die_in_step).empty()) return false;
    if (!Take(&script_->silent_in_step).empty()) {
      while (channel_->Receive().ok()) {
      }
      return false;
    }
    if (const auto other = Take(&script_->instead_of_step_done)) {
      Send(other.mapped());
      return true;
    }
    engine::StepDonePayload done{.generation = payload.generation, .number = payload.number};
    if (const auto failed = Take(&script_->in_step)) {
      done.status = failed.mapped();
      Send(engine::MakeFrame(done));
      return true;
    }
    if (rank_ != script_->size - script_->size / script_->num_stages) return true;
    for (size_t i = 0; i < payload.plan.logits_indices.size(); ++i) {
      done.output.tokens.push_back({.token_id = TokenOf(payload.plan, i)});
    }
    {
      const std::lock_guard lock(script_->mutex);
      answers_.push_back(engine::MakeFrame(done));
    }
    script_->changed.notify_all();
    return true;
  }

  std::string Address(int rank) const { return fmt::format("{} of {}", rank, generation_); }

  const int rank_;
  comm::FrameChannel* channel_;
  std::shared_ptr<Script> script_;
  std::deque<comm::Frame> unread_;  // that came before the first word
  uint64_t generation_ = 0;
  // Guarded by the script's mutex:
  std::deque<comm::Frame> answers_;
  bool ended_ = false;
  // Another one in every life.
  const uint64_t process_ = num_processes_++;
  static inline std::atomic<uint64_t> num_processes_{1};
};

}  // namespace nibble::testing
