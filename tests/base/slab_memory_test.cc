// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/slab_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "base/aligned_buffer.h"

namespace nibble {
namespace {

constexpr size_t kBlock = (size_t{64} << 10) + 100;

size_t Page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

// The first whole page from `at` on.
char* WholePage(const char* at) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(at) + Page() - 1) / Page() * Page());
}

// Whether the page belongs to the process. Not whether it is in memory: there are systems that say
// so of every page of a mapping.
bool IsMapped(char* page) {
  unsigned char resident = 0;
  return mincore(page, Page(), &resident) == 0;
}

TEST(SlabMemoryTest, BlocksAreZerosSideBySide) {
  SlabMemory slabs;
  std::vector<char*> blocks;
  for (int i = 0; i < 3; ++i) {
    auto* block = static_cast<char*>(slabs.Allocate(kBlock));
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % kMemoryAlignment, 0U);
    for (size_t at = 0; at < kBlock; ++at) ASSERT_EQ(block[at], 0);
    std::memset(block, i + 1, kBlock);
    blocks.push_back(block);
  }
  EXPECT_LT(static_cast<size_t>(blocks[1] - blocks[0]), kBlock + kMemoryAlignment);
  for (int i = 0; i < 3; ++i) {
    for (size_t at = 0; at < kBlock; ++at) ASSERT_EQ(blocks[static_cast<size_t>(i)][at], i + 1);
  }
  for (char* block : blocks) EXPECT_TRUE(slabs.Free(block, kBlock));
}

TEST(SlabMemoryTest, FreedPagesGoBackAndNeighboursStay) {
  if (kAddressSanitizer) GTEST_SKIP() << "blocks are malloc's";
  SlabMemory slabs;
  auto* first = static_cast<char*>(slabs.Allocate(kBlock));
  auto* second = static_cast<char*>(slabs.Allocate(kBlock));
  auto* third = static_cast<char*>(slabs.Allocate(kBlock));
  for (char* block : {first, second, third}) std::memset(block, 7, kBlock);
  EXPECT_TRUE(slabs.Free(second, kBlock));
  const char* const page = WholePage(second);  // still mapped, for the neighbours
  for (size_t at = 0; at < Page(); ++at) ASSERT_EQ(page[at], 0);
  for (size_t at = 0; at < kBlock; ++at) ASSERT_EQ(first[at] + third[at], 14);
  EXPECT_TRUE(slabs.Free(first, kBlock));
  EXPECT_TRUE(IsMapped(WholePage(third)));
  EXPECT_TRUE(slabs.Free(third, kBlock));
  EXPECT_FALSE(IsMapped(WholePage(third)));
}

TEST(SlabMemoryTest, MoreThanASlab) {
  SlabMemory slabs;
  constexpr size_t kLarge = SlabMemory::kSlabBytes / 2;
  std::vector<char*> blocks;
  for (int i = 0; i < 4; ++i) {
    auto* block = static_cast<char*>(slabs.Allocate(kLarge - 1));
    block[0] = 1;
    block[kLarge - 2] = 2;
    for (const char* other : blocks) {
      EXPECT_GE(static_cast<size_t>(block > other ? block - other : other - block), kLarge - 1);
    }
    blocks.push_back(block);
  }
  EXPECT_TRUE(slabs.Free(blocks[2], kLarge - 1));
  EXPECT_TRUE(slabs.Free(blocks[0], kLarge - 1));
  EXPECT_EQ(blocks[1][0], 1);
  EXPECT_EQ(blocks[3][kLarge - 2], 2);
  EXPECT_TRUE(slabs.Free(blocks[3], kLarge - 1));
  EXPECT_TRUE(slabs.Free(blocks[1], kLarge - 1));
}

TEST(SlabMemoryTest, ForeignBlocksAreNot) {
  SlabMemory slabs;
  std::vector<char> other(kBlock);
  EXPECT_FALSE(slabs.Free(other.data(), kBlock));
  void* block = slabs.Allocate(kBlock);
  EXPECT_FALSE(slabs.Free(other.data(), kBlock));
  EXPECT_TRUE(slabs.Free(block, kBlock));
}

// Buffers of both origins, freed by whoever has them.
TEST(SlabMemoryTest, BuffersOfManyThreads) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([thread] {
      std::vector<AlignedBuffer<int>> buffers;
      for (size_t i = 0; i < 40; ++i) {
        const size_t count = (size_t{1} << 14) + i * 1000;
        buffers.push_back(i % 3 == 0 ? AlignedBuffer<int>(count)
                                     : AlignedBuffer<int>::ZeroPages(count));
        if (i % 3 != 0) {
          EXPECT_EQ(buffers.back()[count - 1], 0);
        }
        buffers.back()[0] = buffers.back()[count - 1] = thread;
        if (i % 5 == 4) buffers.erase(buffers.begin());
      }
      for (const auto& buffer : buffers)
        EXPECT_EQ(buffer[0] + buffer[buffer.size() - 1], 2 * thread);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace nibble
