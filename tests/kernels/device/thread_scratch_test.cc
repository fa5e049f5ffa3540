// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/device/thread_scratch.h"

#include <cstdint>
#include <new>
#include <thread>

#include "gtest/gtest.h"

namespace nibble::kernels {
namespace {

TEST(ThreadScratch, StaysWhereItIsUntilMoreIsAsked) {
  struct Purpose;
  int32_t* const first = ThreadScratch<Purpose, int32_t>(100);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0U);
  for (int i = 0; i < 100; ++i) first[i] = i;
  EXPECT_EQ((ThreadScratch<Purpose, int32_t>(1)), first);
  EXPECT_EQ((ThreadScratch<Purpose, int32_t>(100)), first);
  EXPECT_EQ(first[99], 99);
  int32_t* const more = ThreadScratch<Purpose, int32_t>(10000);
  more[9999] = 1;  // the sanitizers' part of this test
  EXPECT_EQ((ThreadScratch<Purpose, int32_t>(100)), more);
}

TEST(ThreadScratch, IsOneForEachPurposeTypeAndThread) {
  struct Purpose;
  struct Other;
  const void* const mine = ThreadScratch<Purpose, int32_t>(8);
  EXPECT_NE(mine, (ThreadScratch<Other, int32_t>(8)));
  EXPECT_NE(mine, (static_cast<const void*>(ThreadScratch<Purpose, float>(8))));
  const void* theirs = mine;
  std::thread([&] { theirs = ThreadScratch<Purpose, int32_t>(8); }).join();
  EXPECT_NE(mine, theirs);
}

// What was there before is gone then, and the next call starts anew.
TEST(ThreadScratch, IsUsableAfterMemoryRanOut) {
  struct Purpose;
  ThreadScratch<Purpose, double>(8);
  EXPECT_THROW((ThreadScratch<Purpose, double>(SIZE_MAX / 4)), std::bad_alloc);
  double* const again = ThreadScratch<Purpose, double>(8);
  ASSERT_NE(again, nullptr);
  again[7] = 1.0;
}

}  // namespace
}  // namespace nibble::kernels
