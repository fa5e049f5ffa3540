// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/heap_limits.h"

#include <malloc.h>

#include <memory>

#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(HeapLimitsTest, LargePiecesAreMappedHoweverOftenOneWasFreed) {
  LimitHeap();
  const auto mapped = [] { return ::mallinfo2().hblkhd; };
  const size_t before = mapped();
  constexpr size_t kBytes = size_t{16} << 20;
  for (int i = 0; i < 3; ++i) {
    const auto piece = std::make_unique<char[]>(kBytes);
    EXPECT_GE(mapped(), before + kBytes) << i;
  }
  EXPECT_EQ(mapped(), before);
}
#endif

}  // namespace
}  // namespace nibble::cli
