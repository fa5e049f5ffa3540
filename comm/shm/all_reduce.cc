// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sums in shared memory. The rounds are those of collectives.h.

#include <algorithm>
#include <array>
#include <cstring>

#include "comm/shm/collectives.h"

namespace nibble::comm {
namespace {

constexpr int64_t kSlotValues = static_cast<int64_t>(shm::kSlotBytes / sizeof(float));
// Stripes begin at cache lines: two ranks do not write one.
constexpr int64_t kStripeUnit = 16;
// What a thread of the pool takes at a time, and what is worth waking it for.
constexpr int64_t kPoolPiece = 16 << 10;
constexpr int64_t kPoolLeast = 32 << 10;
// Sums are copied while they are in the L1 cache.
constexpr int64_t kSumBlock = 2 << 10;
// What a rank reads from its peers in the time of one wait for them.
constexpr int64_t kWaitBytes = 48 << 10;

// body(begin, end) over pieces of [first, last).
template <typename Body>
void ForRange(ThreadPool* pool, int64_t first, int64_t last, const Body& body) {
  if (first >= last) return;
  if (pool == nullptr || pool->num_threads() == 1 || last - first < kPoolLeast) {
    body(first, last);
    return;
  }
  pool->ParallelFor(last - first, kPoolPiece,
                    [&](int64_t begin, int64_t end) { body(first + begin, first + end); });
}

void CopyValues(const float* from, float* to, int64_t begin, int64_t end) {
  std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin) * sizeof(float));
}

}  // namespace

// A part of the message that goes through the slots of one round, cut into a stripe for each rank.
struct ShmCollectives::Chunk {
  float* data = nullptr;  // [count]
  int64_t count = 0;
  uint64_t round = 0;
  int num_ranks = 1;

  int64_t StripeBegin(int rank) const {
    const int64_t even = count * rank / num_ranks;
    return rank == num_ranks ? count : even / kStripeUnit * kStripeUnit;
  }
  int64_t StripeEnd(int rank) const { return StripeBegin(rank + 1); }
};

absl::Status ShmCollectives::AllReduce(float* data, int64_t count, Algorithm algorithm,
                                       ThreadPool* pool, Deadline deadline) {
  const bool one_shot = algorithm == Algorithm::kOneShot;
  NIBBLE_RETURN_IF_ERROR(
      Begin(one_shot ? Kind::kOneShot : Kind::kTwoShot, 0, static_cast<uint64_t>(count), deadline));
  if (size() == 1) return absl::OkStatus();
  return one_shot ? OneShot(data, count, pool) : TwoShot(data, count, pool);
}

// Of M bytes a rank reads (N - 1) M from its peers by one-shot and 2 M (N - 1) / N by two-shot,
// which waits once more.
Algorithm ShmCollectives::Faster(int64_t count, int num_ranks) {
  const int64_t ranks = num_ranks;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  return bytes * (ranks - 1) * (ranks - 2) <= kWaitBytes * ranks ? Algorithm::kOneShot
                                                                 : Algorithm::kTwoShot;
}

absl::Status ShmCollectives::OneShot(float* data, int64_t count, ThreadPool* pool) {
  for (int64_t offset = 0; offset < count; offset += kSlotValues) {
    float* const part = data + offset;
    const int64_t num_values = std::min(kSlotValues, count - offset);
    const uint64_t round = ++round_;
    NIBBLE_RETURN_IF_ERROR(WaitForSlot(round));
    float* const mine = values(rank(), round);
    ForRange(pool, 0, num_values,
             [&](int64_t begin, int64_t end) { CopyValues(part, mine, begin, end); });
    Publish(round);
    NIBBLE_RETURN_IF_ERROR(WaitAllReady(round));
    ForRange(pool, 0, num_values, [&](int64_t begin, int64_t end) {
      std::array<const float*, shm::kMaxRanks> sources;
      for (int i = 0; i < size(); ++i) {
        sources[static_cast<size_t>(i)] = (i == rank() ? part : values(i, round)) + begin;
      }
      sum_(sources.data(), size(), part + begin, end - begin);
    });
    done_ = round;
  }
  return absl::OkStatus();
}

absl::Status ShmCollectives::TwoShot(float* data, int64_t count, ThreadPool* pool) {
  const uint64_t first_round = round_ + 1;
  const int64_t num_chunks = (count + kSlotValues - 1) / kSlotValues;
  round_ += static_cast<uint64_t>(num_chunks);
  const auto chunk = [&](int64_t i) {
    return Chunk{.data = data + i * kSlotValues,
                 .count = std::min(kSlotValues, count - i * kSlotValues),
                 .round = first_round + static_cast<uint64_t>(i),
                 .num_ranks = size()};
  };
  // Three chunks are under way at a time, so that a rank that is a little late stops nobody.
  for (int64_t step = 0; step < num_chunks + 2; ++step) {
    if (step < num_chunks) {
      const Chunk in = chunk(step);
      NIBBLE_RETURN_IF_ERROR(WaitForSlot(in.round));
      CopyIn(in, pool);
      Publish(in.round);
    }
    if (step >= 1 && step <= num_chunks) {
      const Chunk sum = chunk(step - 1);
      NIBBLE_RETURN_IF_ERROR(WaitAllReady(sum.round));
      ReduceStripe(sum, pool);
      segment_->progress(rank()).reduced.store(sum.round, std::memory_order_seq_cst);
      segment_->WakeAll();
    }
    if (step >= 2) {
      const Chunk out = chunk(step - 2);
      NIBBLE_RETURN_IF_ERROR(WaitAllReduced(out.round));
      CopyOut(out, pool);
      done_ = out.round;
    }
  }
  return absl::OkStatus();
}

absl::Status ShmCollectives::WaitAllReduced(uint64_t round) {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const shm::Progress& progress = segment_->progress(peer);
    NIBBLE_RETURN_IF_ERROR(
        segment_->WaitUntil([&] { return shm::Reached(progress.reduced, round); },
                            {.peer = peer, .deadline = deadline_, .verb = "sum its stripe"}));
  }
  return absl::OkStatus();
}

// All but the own stripe, which nobody else sums.
void ShmCollectives::CopyIn(const Chunk& chunk, ThreadPool* pool) {
  float* const slot = values(rank(), chunk.round);
  const auto copy = [&](int64_t begin, int64_t end) { CopyValues(chunk.data, slot, begin, end); };
  ForRange(pool, 0, chunk.StripeBegin(rank()), copy);
  ForRange(pool, chunk.StripeEnd(rank()), chunk.count, copy);
}

// The sum goes to the caller's data and, for the others, into the own slot, where the stripe's
// place is free.
void ShmCollectives::ReduceStripe(const Chunk& chunk, ThreadPool* pool) {
  float* const slot = values(rank(), chunk.round);
  ForRange(pool, chunk.StripeBegin(rank()), chunk.StripeEnd(rank()),
           [&](int64_t begin, int64_t end) {
             for (int64_t at = begin; at < end; at += kSumBlock) {
               const int64_t length = std::min(kSumBlock, end - at);
               std::array<const float*, shm::kMaxRanks> sources;
               for (int i = 0; i < size(); ++i) {
                 sources[static_cast<size_t>(i)] =
                     (i == rank() ? chunk.data : values(i, chunk.round)) + at;
               }
               sum_(sources.data(), size(), slot + at, length);
               CopyValues(slot, chunk.data, at, at + length);
             }
           });
}

void ShmCollectives::CopyOut(const Chunk& chunk, ThreadPool* pool) {
  for (int i = 0; i < size(); ++i) {
    if (i == rank()) continue;
    const float* const slot = values(i, chunk.round);
    ForRange(pool, chunk.StripeBegin(i), chunk.StripeEnd(i),
             [&](int64_t begin, int64_t end) { CopyValues(slot, chunk.data, begin, end); });
  }
}

}  // namespace nibble::comm
