// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/testing/memory_transport.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <random>
#include <tuple>
#include <unordered_map>

#include "base/check.h"

namespace nibble::testing {
namespace {

using comm::Deadline;
using comm::Ticket;
using comm::Transport;

// One side of a message.
struct Side {
  int rank = 0;  // whose it is
  int peer = 0;
  const void* source = nullptr;  // of a Send
  void* target = nullptr;        // of a Receive
  size_t bytes = 0;
  bool done = false;
  absl::Status status;
};
using SideRef = std::shared_ptr<Side>;

struct Pair {
  SideRef send;
  SideRef receive;
  uint32_t delay;  // polls until it is copied
};

struct Channel {
  std::deque<SideRef> sends;
  std::deque<SideRef> receives;
};

// Where the transports of a group meet.
class Hub {
 public:
  Hub(int size, uint32_t seed) : gone_(static_cast<size_t>(size)), seed_(seed), random_(seed) {}

  std::mutex mutex;
  std::condition_variable changed;

  // All below REQUIRE mutex.
  void Post(int from, int to, uint64_t tag, const SideRef& side, bool is_send) {
    Channel& channel = channels_[{from, to, tag}];
    (is_send ? channel.sends : channel.receives).push_back(side);
    if (channel.sends.empty() || channel.receives.empty()) return;
    Pair pair = {channel.sends.front(), channel.receives.front(),
                 seed_ != 0 ? static_cast<uint32_t>(random_() % 6) : 0};
    channel.sends.pop_front();
    channel.receives.pop_front();
    if (channel.sends.empty() && channel.receives.empty()) channels_.erase({from, to, tag});
    pairs_.push_back(std::move(pair));
    if (seed_ == 0) Poll(from);
  }

  // Copies what is due among the messages of `rank`; false when none of its messages is left.
  bool Poll(int rank) {
    bool any = false;
    for (auto it = pairs_.begin(); it != pairs_.end();) {
      const bool mine = it->send->rank == rank || it->receive->rank == rank;
      if (!mine || it->delay-- > 0) {
        any |= mine;
        ++it;
        continue;
      }
      Copy(*it);
      it = pairs_.erase(it);
      changed.notify_all();
    }
    return any;
  }

  bool gone(int rank) const { return gone_[static_cast<size_t>(rank)]; }

  // Nothing of this rank's memory is touched any more.
  void Leave(int rank) {
    gone_[static_cast<size_t>(rank)] = true;
    const auto is_of = [rank](const SideRef& side) { return side->rank == rank; };
    for (auto& [key, channel] : channels_) {
      std::erase_if(channel.sends, is_of);
      std::erase_if(channel.receives, is_of);
    }
    pairs_.remove_if([&](const Pair& pair) { return is_of(pair.send) || is_of(pair.receive); });
    changed.notify_all();
  }

 private:
  static void Copy(const Pair& pair) {
    Side& send = *pair.send;
    Side& receive = *pair.receive;
    if (send.bytes != receive.bytes) {
      send.status = receive.status = DataLoss("rank {} sent {} bytes where rank {} expects {}",
                                              send.rank, send.bytes, receive.rank, receive.bytes);
    } else if (send.bytes > 0) {
      std::memcpy(receive.target, send.source, send.bytes);
    }
    send.done = receive.done = true;
  }

  std::map<std::tuple<int, int, uint64_t>, Channel> channels_;  // by sender, receiver, tag
  std::list<Pair> pairs_;
  std::vector<bool> gone_;
  uint32_t seed_;
  std::mt19937 random_;
};

class MemoryTransport : public Transport {
 public:
  MemoryTransport(int rank, int size, std::shared_ptr<Hub> hub)
      : rank_(rank), size_(size), hub_(std::move(hub)) {}
  ~MemoryTransport() override {
    const std::lock_guard<std::mutex> lock(hub_->mutex);
    hub_->Leave(rank_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return "memory"; }

  absl::StatusOr<Ticket> Send(int peer, uint64_t tag, const void* data, size_t bytes) override {
    return Begin(true, tag, {.rank = rank_, .peer = peer, .source = data, .bytes = bytes});
  }
  absl::StatusOr<Ticket> Receive(int peer, uint64_t tag, void* buffer, size_t bytes) override {
    return Begin(false, tag, {.rank = rank_, .peer = peer, .target = buffer, .bytes = bytes});
  }

  absl::Status Wait(Ticket ticket, Deadline deadline) override {
    std::unique_lock<std::mutex> lock(hub_->mutex);
    const auto found = sides_.find(ticket);
    NIBBLE_CHECK(found != sides_.end());
    const SideRef side = found->second;
    sides_.erase(found);
    for (;;) {
      if (!aborted_.empty()) broken_ = absl::AbortedError(aborted_);
      if (!broken_.ok()) return broken_;
      if (side->done) {
        broken_ = side->status;
        return broken_;
      }
      if (hub_->Poll(rank_) || side->done) continue;
      if (hub_->gone(side->peer)) {
        broken_ = Unavailable("rank {} is gone", side->peer);
      } else if (deadline.Passed()) {
        broken_ = absl::DeadlineExceededError(
            fmt::format("rank {} waited too long for rank {}", rank_, side->peer));
      } else {
        hub_->changed.wait_until(lock, deadline.at());
      }
    }
  }

  void Progress() override {
    const std::lock_guard<std::mutex> lock(hub_->mutex);
    hub_->Poll(rank_);
  }

  void Abort(const std::string& reason) override {
    const std::lock_guard<std::mutex> lock(hub_->mutex);
    if (aborted_.empty()) aborted_ = reason.empty() ? "aborted" : reason;
    hub_->changed.notify_all();
  }

 private:
  absl::StatusOr<Ticket> Begin(bool is_send, uint64_t tag, Side side) {
    const int peer = side.peer;
    NIBBLE_CHECK(peer >= 0 && peer < size_ && peer != rank_);
    const std::lock_guard<std::mutex> lock(hub_->mutex);
    if (!aborted_.empty()) broken_ = absl::AbortedError(aborted_);
    if (!broken_.ok()) return broken_;
    const auto ref = std::make_shared<Side>(std::move(side));
    const Ticket ticket = next_++;
    sides_.emplace(ticket, ref);
    hub_->Post(is_send ? rank_ : peer, is_send ? peer : rank_, tag, ref, is_send);
    return ticket;
  }

  const int rank_;
  const int size_;
  const std::shared_ptr<Hub> hub_;
  // Guarded by hub_->mutex:
  std::unordered_map<Ticket, SideRef> sides_;  // under way, not waited for
  Ticket next_ = 0;
  std::string aborted_;  // not empty: why
  absl::Status broken_;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> MakeMemoryTransports(
    int size, const MemoryTransportOptions& options) {
  const auto hub = std::make_shared<Hub>(size, options.disorder_seed);
  std::vector<std::unique_ptr<Transport>> transports;
  for (int rank = 0; rank < size; ++rank) {
    transports.push_back(std::make_unique<MemoryTransport>(rank, size, hub));
  }
  return transports;
}

}  // namespace nibble::testing
