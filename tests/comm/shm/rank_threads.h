// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that are threads of the test.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "comm/deadline.h"
#include "comm/shm/segment.h"

namespace nibble::comm {

// Far longer than a test takes on a busy machine.
inline Deadline TestDeadline() { return Deadline::After(std::chrono::seconds(120)); }

inline std::vector<std::unique_ptr<ShmSegment>> ThreadSegments(int num_ranks,
                                                               uint64_t first_round = 0) {
  auto segments = ShmSegment::MakeForThreads(num_ranks, first_round);
  EXPECT_TRUE(segments.ok()) << segments.status();
  return segments.ok() ? *std::move(segments) : std::vector<std::unique_ptr<ShmSegment>>();
}

// body(segment) on a thread for each rank. Segments live until all have returned.
inline void RunRanks(const std::vector<std::unique_ptr<ShmSegment>>& segments,
                     const std::function<void(ShmSegment*)>& body) {
  std::vector<std::thread> threads;
  threads.reserve(segments.size());
  for (const auto& segment : segments) {
    threads.emplace_back([&body, rank = segment.get()] { body(rank); });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace nibble::comm
