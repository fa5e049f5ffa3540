// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/aligned_buffer.h"

#include <cstdint>
#include <cstring>
#include <new>
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

TEST(AlignedBufferTest, LargeBuffersStartOnHugePagesAndReadAsZeros) {
  for (const size_t bytes : {kLargeBlockBytes - 64, kLargeBlockBytes, kLargeBlockBytes + 4097}) {
    // A block that was used before and freed must not show through.
    std::memset(AlignedBuffer<uint8_t>(bytes).data(), 0xff, bytes);
    auto buffer = AlignedBuffer<uint8_t>::ZeroPages(bytes);
    EXPECT_EQ(buffer.size(), bytes);
    for (const size_t i : {size_t{0}, bytes / 2, bytes - 1}) EXPECT_EQ(buffer[i], 0) << i;
    std::memset(buffer.data(), 1, bytes);
    EXPECT_EQ(buffer[bytes - 1], 1);
    if (bytes >= kLargeBlockBytes && !kAddressSanitizer) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % (size_t{2} << 20), 0U);
    }
  }
  EXPECT_TRUE(AlignedBuffer<float>::ZeroPages(0).empty());
}

TEST(AlignedBufferTest, MoreThanThereCanBeIsBadAlloc) {
  EXPECT_THROW(AlignedBuffer<double>(SIZE_MAX / 4), std::bad_alloc);
  if (!kAddressSanitizer) {  // which ends the process instead
    EXPECT_THROW(AlignedBuffer<double>::ZeroPages(size_t{1} << 50), std::bad_alloc);
  }
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
