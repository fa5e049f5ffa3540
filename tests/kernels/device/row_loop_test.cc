// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/device/row_loop.h"

#include <cstddef>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace nibble::kernels {
namespace {

TEST(ForRows, CoversEveryRowOnceInPiecesOfTheGrain) {
  ThreadPool pool(3);
  for (const int64_t num_rows : {0, 1, 2, 5, 64, 1000}) {
    for (const int64_t row_elements : {int64_t{0}, int64_t{1}, int64_t{4096}, kPieceElements - 1,
                                       kPieceElements, kPieceElements + 1}) {
      std::vector<int> hits(static_cast<size_t>(num_rows), 0);
      ForRows(&pool, num_rows, row_elements, [&](int64_t begin, int64_t end) {
        EXPECT_LT(begin, end);
        // One row, or as many as a piece's elements allow.
        EXPECT_TRUE(end - begin == 1 || (end - begin) * row_elements <= kPieceElements);
        for (int64_t row = begin; row < end; ++row) ++hits[static_cast<size_t>(row)];
      });
      for (const int hit : hits) ASSERT_EQ(hit, 1) << num_rows << " rows of " << row_elements;
    }
  }
}

TEST(ForRows, OnePieceStaysOnTheCallingThread) {
  ThreadPool pool(4);
  const auto caller = std::this_thread::get_id();
  for (int i = 0; i < 50; ++i) {
    ForRows(&pool, 1, 100 * kPieceElements,
            [&](int64_t, int64_t) { EXPECT_EQ(std::this_thread::get_id(), caller); });
    ForRows(&pool, 16, kPieceElements / 16, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(std::this_thread::get_id(), caller);
      EXPECT_EQ(end - begin, 16);
    });
  }
}

}  // namespace
}  // namespace nibble::kernels
