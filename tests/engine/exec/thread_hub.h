// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that are threads of the test: a hub whose "processes" run a function at the end of a
// channel in memory. They can be killed (the channel breaks), frozen (nothing gets in or out, as of
// a stopped process) and kept from coming back.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "comm/ranks/frame_channel.h"
#include "comm/ranks/rank_hub.h"

namespace nibble::testing {

// Both ends of one "process".
class ThreadChannel final : public comm::FrameChannel {
 public:
  // The rank's end.
  absl::Status Send(const comm::Frame& frame) override {
    const std::lock_guard lock(mutex_);
    if (why_closed_) return Unavailable("{}", *why_closed_);
    to_driver_.push_back(frame);
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::StatusOr<comm::Frame> Receive() override { return Pop(&to_rank_); }

  // The hub's end.
  void SendToRank(comm::Frame frame) {
    const std::lock_guard lock(mutex_);
    to_rank_.push_back(std::move(frame));
    changed_.notify_all();
  }
  absl::StatusOr<comm::Frame> ReceiveFromRank() { return Pop(&to_driver_); }
  void Close(const std::string& why) {
    const std::lock_guard lock(mutex_);
    if (!why_closed_) why_closed_ = why;
    changed_.notify_all();
  }
  void Freeze() {
    const std::lock_guard lock(mutex_);
    frozen_ = true;
  }
  std::string why_closed() const {
    const std::lock_guard lock(mutex_);
    return why_closed_.value_or("");
  }
  // Both ends wait, and nothing is under way that could get to either.
  bool IsIdle() const {
    const std::lock_guard lock(mutex_);
    const bool is_empty = to_rank_.empty() && to_driver_.empty();
    return !why_closed_ && num_waiting_ == 2 && (frozen_ || is_empty);
  }

 private:
  absl::StatusOr<comm::Frame> Pop(std::deque<comm::Frame>* queue) {
    std::unique_lock lock(mutex_);
    ++num_waiting_;
    changed_.wait(lock, [&] { return why_closed_.has_value() || (!frozen_ && !queue->empty()); });
    --num_waiting_;
    if (why_closed_) return Unavailable("{}", *why_closed_);
    comm::Frame frame = std::move(queue->front());
    queue->pop_front();
    return frame;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<comm::Frame> to_rank_;
  std::deque<comm::Frame> to_driver_;
  bool frozen_ = false;
  int num_waiting_ = 0;
  std::optional<std::string> why_closed_;
};

class ThreadHub final : public comm::RankHub {
 public:
  using Main = std::function<void(int rank, comm::FrameChannel* channel)>;

  ThreadHub(int size, Main main) : main_(std::move(main)), slots_(static_cast<size_t>(size)) {}
  ~ThreadHub() override { Stop(); }

  int size() const override { return static_cast<int>(slots_.size()); }

  absl::Status Start(Observer* observer) override {
    for (int rank = 0; rank < size(); ++rank) {
      slots_[static_cast<size_t>(rank)].thread =
          std::thread([this, rank, observer] { Live(rank, observer); });
    }
    return absl::OkStatus();
  }

  void Send(int rank, comm::Frame frame) override {
    if (const auto channel = ChannelOf(rank)) channel->SendToRank(std::move(frame));
  }

  void Restart(int rank, const std::string& why) override {
    std::shared_ptr<ThreadChannel> channel;
    {
      const std::lock_guard lock(mutex_);
      restarts_.push_back(why);
      Slot& slot = slots_[static_cast<size_t>(rank)];
      slot.start = true;
      channel = slot.channel;
      changed_.notify_all();
    }
    if (channel != nullptr) channel->Close("ended to be started anew");
  }

  std::string Describe(int rank) const override {
    const std::lock_guard lock(mutex_);
    return Name(rank);
  }

  // Of all ranks, instead of one that changes whenever a rank starts.
  void SetBindAddress(const std::string& address) {
    const std::lock_guard lock(mutex_);
    bind_address_ = address;
  }
  std::string BindAddress(int rank) const override {
    const std::lock_guard lock(mutex_);
    if (!bind_address_.empty()) return bind_address_;
    return fmt::format("10.0.{}.{}", rank, slots_[static_cast<size_t>(rank)].num_starts);
  }

  void Stop() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    for (int rank = 0; rank < size(); ++rank) End(rank, "stopped");
    for (Slot& slot : slots_) {
      if (slot.thread.joinable()) slot.thread.join();
    }
  }

  // For tests.
  // Why ranks are said to be down, from now on.
  void SetReason(comm::LossReason reason) { reason_ = reason; }
  void Kill(int rank) { End(rank, "killed by signal 9"); }
  void Freeze(int rank) {
    if (const auto channel = ChannelOf(rank)) channel->Freeze();
  }
  // Whether ranks that ended are started again when they are asked for.
  void SetRevive(bool revive) {
    const std::lock_guard lock(mutex_);
    revive_ = revive;
    changed_.notify_all();
  }
  std::vector<std::string> restarts() const {
    const std::lock_guard lock(mutex_);
    return restarts_;
  }
  int num_starts(int rank) const {
    const std::lock_guard lock(mutex_);
    return slots_[static_cast<size_t>(rank)].num_starts;
  }
  // Nobody has anything to do: all ranks wait for a frame, or are down and not asked for.
  bool IsIdle() const {
    const std::lock_guard lock(mutex_);
    return std::ranges::all_of(slots_, [this](const Slot& slot) {
      if (slot.channel != nullptr) return slot.channel->IsIdle();
      return slot.is_down && !(revive_ && slot.start);
    });
  }

 private:
  struct Slot {
    std::thread thread;
    std::shared_ptr<ThreadChannel> channel;  // while it is up
    int num_starts = 0;
    bool start = true;     // a rank that ended stays down until it is asked for
    bool is_down = false;  // and the observer was told
  };

  std::string Name(int rank) const {
    return fmt::format("rank {} (pid {})", rank,
                       100 * (rank + 1) + slots_[static_cast<size_t>(rank)].num_starts);
  }
  std::shared_ptr<ThreadChannel> ChannelOf(int rank) const {
    const std::lock_guard lock(mutex_);
    return slots_[static_cast<size_t>(rank)].channel;
  }
  void End(int rank, const std::string& why) {
    if (const auto channel = ChannelOf(rank)) channel->Close(why);
  }

  // One process after another.
  void Live(int rank, Observer* observer) {
    Slot& slot = slots_[static_cast<size_t>(rank)];
    for (;;) {
      const auto channel = std::make_shared<ThreadChannel>();
      std::string name;
      {
        std::unique_lock lock(mutex_);
        slot.is_down = true;
        changed_.wait(lock, [&] { return (revive_ && slot.start) || stopping_; });
        if (stopping_) return;
        slot.start = slot.is_down = false;
        ++slot.num_starts;
        slot.channel = channel;
        name = Name(rank);
      }
      observer->OnUp(rank);
      std::thread process([this, rank, channel] {
        main_(rank, channel.get());
        channel->Close("exited");
      });
      for (;;) {
        absl::StatusOr<comm::Frame> frame = channel->ReceiveFromRank();
        if (!frame.ok()) break;
        observer->OnFrame(rank, *std::move(frame));
      }
      process.join();
      {
        const std::lock_guard lock(mutex_);
        slot.channel = nullptr;
        if (stopping_) return;
      }
      observer->OnDown(rank, reason_, name + ": " + channel->why_closed());
    }
  }

  const Main main_;
  std::atomic<comm::LossReason> reason_{comm::LossReason::kKilled};
  mutable std::mutex mutex_;
  std::string bind_address_;  // guarded by mutex_
  std::condition_variable changed_;
  // Guarded by mutex_ (a slot's thread is not):
  std::vector<Slot> slots_;
  std::vector<std::string> restarts_;
  bool revive_ = true;
  bool stopping_ = false;
};

}  // namespace nibble::testing
