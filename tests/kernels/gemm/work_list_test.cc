// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/work_list.h"

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

TEST(WorkList, EveryUnitOnce) {
  testing::Random random(1);
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (const int64_t num_items : {0, 1, 2, 7, 300}) {
      std::vector<WorkItem> items;
      std::vector<std::vector<std::atomic<int>>> seen;
      for (int64_t i = 0; i < num_items; ++i) {
        const int64_t units = i % 5 == 4 ? 0 : random.Int(1, 200);
        items.push_back({.units = units, .unit_cost = random.Int(1, 100)});
        seen.emplace_back(static_cast<size_t>(units));
      }
      ForWork(items, &pool, [&](int64_t item, int64_t begin, int64_t end) {
        ASSERT_LT(begin, end);
        for (int64_t unit = begin; unit < end; ++unit) {
          ++seen[static_cast<size_t>(item)][static_cast<size_t>(unit)];
        }
      });
      for (const auto& item : seen) {
        for (const std::atomic<int>& count : item) EXPECT_EQ(count, 1);
      }
    }
  }
}

// No piece costs much more than a small share of one thread's work, however uneven the items.
TEST(WorkList, PiecesCostAlike) {
  std::vector<WorkItem> items = {{.units = 400, .unit_cost = 100}};
  for (int i = 0; i < 20; ++i) items.push_back({.units = 400, .unit_cost = 3});
  constexpr int64_t kThreads = 4;
  const int64_t total = 400 * (100 + 20 * 3);
  CutWork(items, kThreads);
  for (const WorkItem& item : items) {
    EXPECT_LE(item.piece_units * item.unit_cost, total / kThreads / 4);
  }
  // One loop alone is cut as evenly.
  WorkItem one = {.units = 1000, .unit_cost = 7};
  const int64_t pieces = CutWork({&one, 1}, kThreads);
  EXPECT_GE(pieces, 2 * kThreads);
  EXPECT_LE(one.piece_units * 4 * kThreads, 1000 + 4 * kThreads);
}

}  // namespace
}  // namespace nibble::kernels
