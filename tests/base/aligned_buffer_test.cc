// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/aligned_buffer.h"

#include <cstdint>
#include <utility>

#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(AlignedBufferTest, IsAlignedAndZeroedWhenAsked) {
  const auto buffer = AlignedBuffer<int16_t>::Zeroed(33);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % AlignedBuffer<int16_t>::kAlignment, 0U);
  EXPECT_EQ(buffer.size_bytes(), 66U);
  for (const int16_t value : buffer) EXPECT_EQ(value, 0);
}

// Moves must not leave a size behind a pointer that is gone.
TEST(AlignedBufferTest, MovedFromIsEmpty) {
  AlignedBuffer<float> from(5);
  const float* const data = from.data();
  AlignedBuffer<float> to(std::move(from));
  EXPECT_EQ(to.data(), data);
  EXPECT_EQ(to.size(), 5U);
  EXPECT_TRUE(from.empty());  // NOLINT(bugprone-use-after-move): the subject
  EXPECT_EQ(from.data(), nullptr);

  AlignedBuffer<float> assigned(3);
  assigned = std::move(to);
  EXPECT_EQ(assigned.data(), data);
  EXPECT_EQ(assigned.size(), 5U);
  EXPECT_TRUE(to.empty());  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(to.begin(), to.end());
}

}  // namespace
}  // namespace nibble
