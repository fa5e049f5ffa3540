// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that are threads of this process, with a host communicator each.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "base/thread_pool.h"
#include "comm/group.h"

namespace nibble::comm {

inline std::vector<std::unique_ptr<Communicator>> ThreadGroup(int size,
                                                              const AllReduceOptions& options) {
  auto group = MakeThreadGroup(size, options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

// body(rank, its communicator, its pool) on a thread each.
template <typename Body>
void OnRanks(const std::vector<std::unique_ptr<Communicator>>& group, const Body& body) {
  std::vector<std::thread> threads;
  for (size_t r = 0; r < group.size(); ++r) {
    threads.emplace_back([&, r] {
      ThreadPool pool(1);
      body(static_cast<int>(r), group[r].get(), &pool);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace nibble::comm
