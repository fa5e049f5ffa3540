// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/collectives.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/check.h"

namespace nibble::comm {
namespace {

shm::SumFunction ChooseSum(Isa isa) {
  if (isa >= Isa::kAvx512Vnni) return shm::avx512vnni::Sum;
  return isa == Isa::kAvx2 ? shm::avx2::Sum : shm::ref::Sum;
}

// A call as one number, for the peers to compare: kind, root, amount.
constexpr int kKindShift = 56;
constexpr int kRootShift = 48;
constexpr uint64_t kAmountMask = (uint64_t{1} << kRootShift) - 1;

std::string DescribeCall(uint64_t call) {
  constexpr const char* kNames[] = {
      "nothing", "one-shot all-reduce", "two-shot all-reduce", "all-gather", "gather", "broadcast",
      "barrier"};
  const auto kind = std::min<uint64_t>(call >> kKindShift, std::size(kNames) - 1);
  return fmt::format("{} of {} (root {})", kNames[kind], call & kAmountMask,
                     call >> kRootShift & 0xFF);
}

}  // namespace

ShmCollectives::ShmCollectives(ShmSegment* segment, Isa isa)
    : segment_(segment),
      sum_(ChooseSum(isa)),
      round_(segment->progress(segment->rank()).ready.load(std::memory_order_relaxed)),
      done_(round_),
      deadline_(Deadline::After(std::chrono::nanoseconds(0))) {
  NIBBLE_CHECK(!segment->place().messages_only);
}

absl::Status ShmCollectives::Begin(Kind kind, int root, uint64_t amount, Deadline deadline) {
  NIBBLE_CHECK(root >= 0 && root < size());
  call_ = static_cast<uint64_t>(kind) << kKindShift | static_cast<uint64_t>(root) << kRootShift |
          (amount & kAmountMask);
  deadline_ = deadline;
  return segment_->Health();
}

absl::Status ShmCollectives::WaitForSlot(uint64_t round) {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const shm::Progress& progress = segment_->progress(peer);
    const uint64_t before = round - shm::kNumSlots;
    NIBBLE_RETURN_IF_ERROR(
        segment_->WaitUntil([&] { return shm::Reached(progress.done, before); },
                            {.peer = peer, .deadline = deadline_, .verb = "come to read"}));
  }
  return absl::OkStatus();
}

void ShmCollectives::Publish(uint64_t round) {
  shm::Progress& mine = segment_->progress(rank());
  mine.calls[round % shm::kNumSlots] = call_;
  mine.done.store(done_, std::memory_order_seq_cst);
  mine.ready.store(round, std::memory_order_seq_cst);
  segment_->WakeAll();
}

absl::Status ShmCollectives::WaitReady(int peer, uint64_t round) {
  const shm::Progress& progress = segment_->progress(peer);
  NIBBLE_RETURN_IF_ERROR(
      segment_->WaitUntil([&] { return shm::Reached(progress.ready, round); },
                          {.peer = peer, .deadline = deadline_, .verb = "join the collective"}));
  return CheckCall(peer, round);
}

absl::Status ShmCollectives::CheckCall(int peer, uint64_t round) {
  const uint64_t theirs = segment_->progress(peer).calls[round % shm::kNumSlots];
  if (theirs == call_) [[likely]]
    return absl::OkStatus();
  return segment_->Fail(
      absl::StatusCode::kInternal,
      fmt::format("{} is in {}, rank {} in {}", segment_->NameOf(peer), DescribeCall(theirs),
                  segment_->place().name_of(rank()), DescribeCall(call_)));
}

absl::Status ShmCollectives::WaitAllReady(uint64_t round) {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) NIBBLE_RETURN_IF_ERROR(WaitReady(peer, round));
  }
  return absl::OkStatus();
}

absl::Status ShmCollectives::AllGather(const void* send, size_t bytes, void* recv,
                                       Deadline deadline) {
  NIBBLE_RETURN_IF_ERROR(Begin(Kind::kAllGather, 0, bytes, deadline));
  const auto* const from = static_cast<const std::byte*>(send);
  auto* const to = static_cast<std::byte*>(recv);
  for (size_t offset = 0; offset < bytes; offset += shm::kSlotBytes) {
    const size_t length = std::min(shm::kSlotBytes, bytes - offset);
    const uint64_t round = ++round_;
    NIBBLE_RETURN_IF_ERROR(WaitForSlot(round));
    std::memcpy(my_slot(round), from + offset, length);
    Publish(round);
    for (int i = 0; i < size(); ++i) {
      std::byte* const part = to + static_cast<size_t>(i) * bytes + offset;
      if (i == rank()) {
        std::memmove(part, from + offset, length);
        continue;
      }
      NIBBLE_RETURN_IF_ERROR(WaitReady(i, round));
      std::memcpy(part, segment_->slot(i, round), length);
    }
    done_ = round;
  }
  return absl::OkStatus();
}

absl::Status ShmCollectives::Gather(const void* send, const size_t* bytes_of_rank, void* recv,
                                    int root, Deadline deadline) {
  size_t most = 0;
  uint64_t total = 0;
  for (int i = 0; i < size(); ++i) {
    if (i != root) most = std::max(most, bytes_of_rank[i]);
    total += bytes_of_rank[i];
  }
  NIBBLE_RETURN_IF_ERROR(Begin(Kind::kGather, root, total, deadline));
  const size_t mine = bytes_of_rank[rank()];
  const auto* const from = static_cast<const std::byte*>(send);
  for (size_t offset = 0; offset < most; offset += shm::kSlotBytes) {
    const auto length = [offset](size_t bytes) {
      return bytes > offset ? std::min(shm::kSlotBytes, bytes - offset) : 0;
    };
    const uint64_t round = ++round_;
    NIBBLE_RETURN_IF_ERROR(WaitForSlot(round));
    if (rank() != root && length(mine) > 0) {
      std::memcpy(my_slot(round), from + offset, length(mine));
    }
    Publish(round);
    auto* part = static_cast<std::byte*>(recv);
    for (int i = 0; i < size() && rank() == root; part += bytes_of_rank[i], ++i) {
      if (i == root) continue;
      NIBBLE_RETURN_IF_ERROR(WaitReady(i, round));
      const size_t piece = length(bytes_of_rank[i]);
      if (piece > 0) std::memcpy(part + offset, segment_->slot(i, round), piece);
    }
    done_ = round;
  }
  if (rank() == root && mine > 0) {
    auto* part = static_cast<std::byte*>(recv);
    for (int i = 0; i < root; ++i) part += bytes_of_rank[i];
    std::memmove(part, from, mine);
  }
  return absl::OkStatus();
}

absl::Status ShmCollectives::Broadcast(void* data, size_t bytes, int root, Deadline deadline) {
  NIBBLE_RETURN_IF_ERROR(Begin(Kind::kBroadcast, root, bytes, deadline));
  auto* const at = static_cast<std::byte*>(data);
  for (size_t offset = 0; offset < bytes; offset += shm::kSlotBytes) {
    const size_t length = std::min(shm::kSlotBytes, bytes - offset);
    const uint64_t round = ++round_;
    NIBBLE_RETURN_IF_ERROR(WaitForSlot(round));
    if (rank() == root) std::memcpy(my_slot(round), at + offset, length);
    Publish(round);
    if (rank() != root) {
      NIBBLE_RETURN_IF_ERROR(WaitReady(root, round));
      std::memcpy(at + offset, segment_->slot(root, round), length);
    }
    done_ = round;
  }
  return absl::OkStatus();
}

absl::Status ShmCollectives::Barrier(Deadline deadline) {
  NIBBLE_RETURN_IF_ERROR(Begin(Kind::kBarrier, 0, 0, deadline));
  const uint64_t round = ++round_;
  NIBBLE_RETURN_IF_ERROR(WaitForSlot(round));
  Publish(round);
  NIBBLE_RETURN_IF_ERROR(WaitAllReady(round));
  done_ = round;
  return absl::OkStatus();
}

}  // namespace nibble::comm
