// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How a rank waits, and how it leaves when the group is broken.

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "comm/shm/futex.h"
#include "comm/shm/segment.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;

// A peer that runs comes within the first; one that has no CPU gets this one's within the second:
// with 4 ranks on 2 CPUs giving way is 5 times as fast as sleeping at once (README.md).
constexpr std::chrono::microseconds kPauseTime(1);
constexpr std::chrono::microseconds kYieldTime(50);
constexpr int kPausesPerLook = 8;  // at the clock
// How long a death may go unnoticed; a sleeper wakes as often.
constexpr std::chrono::milliseconds kPeerCheckInterval(100);
// For the reason, by a rank that was seen to be writing it; it may have died meanwhile.
constexpr std::chrono::milliseconds kReasonWait(20);

void RingBell(shm::Map* map, int rank) {
  std::atomic<uint32_t>* const rings = &map->doorbell(rank).rings;
  rings->fetch_add(1, std::memory_order_seq_cst);
  shm::FutexWakeAll(rings);
}

// The first to call it decides.
void Break(shm::Map* map, absl::StatusCode code, const std::string& message) {
  shm::Header& header = map->header();
  uint32_t state = shm::kWhole;
  if (header.broken.compare_exchange_strong(state, shm::kBeingBroken)) {
    header.code = static_cast<int32_t>(code);
    const size_t length = std::min(message.size(), sizeof(header.message) - 1);
    std::memcpy(header.message, message.data(), length);
    header.message[length] = '\0';
    header.broken.store(shm::kBroken, std::memory_order_seq_cst);
  }
  for (int rank = 0; rank < map->layout().num_ranks; ++rank) RingBell(map, rank);
}

}  // namespace

void ShmSegment::Abort(const std::string& reason) {
  std::shared_ptr<shm::Map> map;
  {
    const std::lock_guard lock(mutex_);
    if (!aborted_.load(std::memory_order_relaxed)) abort_reason_ = reason;
    aborted_.store(true, std::memory_order_release);
    map = map_;
  }
  abort_called_.notify_all();
  if (map == nullptr) return;
  Break(map.get(), absl::StatusCode::kAborted,
        fmt::format("rank {}: {}", place_.name_of(rank()), reason));
}

bool ShmSegment::broken() {
  return aborted_.load(std::memory_order_acquire) ||
         map_->header().broken.load(std::memory_order_seq_cst) != shm::kWhole;
}

absl::Status ShmSegment::Health() {
  if (!broken()) [[likely]]
    return absl::OkStatus();
  return BrokenStatus();
}

absl::Status ShmSegment::Fail(absl::StatusCode code, const std::string& message) {
  Break(map_.get(), code, message);
  return BrokenStatus();
}

absl::Status ShmSegment::BrokenStatus() {
  if (aborted_.load(std::memory_order_acquire)) {
    const std::lock_guard lock(mutex_);
    return absl::AbortedError(abort_reason_);
  }
  shm::Header& header = map_->header();
  const Deadline reason_by = Deadline::After(kReasonWait);
  while (header.broken.load(std::memory_order_seq_cst) != shm::kBroken) {
    if (reason_by.Passed()) return absl::AbortedError("a rank of this host broke the group");
    std::this_thread::yield();
  }
  const auto code = static_cast<absl::StatusCode>(header.code);
  const absl::string_view message(header.message, strnlen(header.message, sizeof(header.message)));
  return {code == absl::StatusCode::kOk ? absl::StatusCode::kInternal : code, message};
}

void ShmSegment::Rouse(int peer) {
  // One of those who find it asleep rings; the sleeper looks at everything when it wakes.
  if (map_->doorbell(peer).sleeping.exchange(0, std::memory_order_seq_cst) != 0) {
    RingBell(map_.get(), peer);
  }
}

void ShmSegment::WakeAll() {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) Wake(peer);
  }
}

bool ShmSegment::Spin(const void* done, DoneFunction call) {
  const Clock::time_point start = Clock::now();
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      __builtin_ia32_pause();
      if (call(done)) return true;
    }
  } while (Clock::now() < start + kPauseTime);
  do {
    std::this_thread::yield();
    if (call(done)) return true;
  } while (!broken() && Clock::now() < start + kYieldTime);
  return false;
}

absl::Status ShmSegment::WaitSlowly(const void* done, DoneFunction call, const WaitFor& wait) {
  if (Spin(done, call)) return absl::OkStatus();
  const Clock::time_point start = Clock::now();
  shm::Doorbell& mine = map_->doorbell(rank());
  const shm::Doorbell& peer = map_->doorbell(wait.peer);
  for (;;) {
    // A peer stores what done() reads, then looks at `sleeping`; here the other way round. All four
    // are seq_cst: one of the two sees the other, and a ring after `rings` was read ends the sleep.
    mine.sleeping.store(1, std::memory_order_seq_cst);
    const uint32_t rings = mine.rings.load(std::memory_order_seq_cst);
    const bool left = peer.seat.load(std::memory_order_seq_cst) == shm::kLeft;
    const bool come = call(done);
    if (!come && !left && !broken()) {
      const auto sleep =
          std::min<std::chrono::nanoseconds>(kPeerCheckInterval, wait.deadline.Remaining());
      shm::FutexWait(&mine.rings, rings, sleep);
    }
    mine.sleeping.store(0, std::memory_order_relaxed);
    if (come || call(done)) return absl::OkStatus();
    if (broken()) return BrokenStatus();
    if (left) {
      return Fail(absl::StatusCode::kUnavailable,
                  fmt::format("{} left the group", NameOf(wait.peer)));
    }
    const Clock::time_point now = Clock::now();
    if (now >= last_peer_check_ + kPeerCheckInterval) {
      last_peer_check_ = now;
      NIBBLE_RETURN_IF_ERROR(CheckPeers());
    }
    if (wait.deadline.Passed()) {
      const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(now - start);
      return Fail(absl::StatusCode::kDeadlineExceeded,
                  fmt::format("{} did not {} while rank {} waited {} ms", NameOf(wait.peer),
                              wait.verb, place_.name_of(rank()), waited.count()));
    }
  }
}

absl::Status ShmSegment::CheckPeers() {
  for (int peer = 0; peer < size(); ++peer) {
    const shm::Doorbell& bell = map_->doorbell(peer);
    const int32_t pid = bell.pid.load(std::memory_order_relaxed);
    if (pid == 0 || pid == static_cast<int32_t>(getpid())) continue;
    shm::PeerProcess& process = peers_[static_cast<size_t>(peer)];
    if (!process.watching()) process = shm::PeerProcess(pid);
    if (!process.Gone()) continue;
    // One that has left may well be gone: whoever waits for it finds that out by its seat.
    if (bell.seat.load(std::memory_order_seq_cst) == shm::kLeft) continue;
    return Fail(absl::StatusCode::kUnavailable,
                fmt::format("{} is gone: its process ended", NameOf(peer)));
  }
  return absl::OkStatus();
}

std::string ShmSegment::NameOf(int peer) const {
  const int32_t pid = map_->doorbell(peer).pid.load(std::memory_order_relaxed);
  const int rank_in_group = place_.name_of(peer);
  return pid == 0 ? fmt::format("rank {}", rank_in_group)
                  : fmt::format("rank {} (pid {})", rank_in_group, pid);
}

}  // namespace nibble::comm
