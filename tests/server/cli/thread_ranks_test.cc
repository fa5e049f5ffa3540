// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/thread_ranks.h"

#include <stdlib.h>  // setenv

#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

TEST(LoadKernelsAtStart, LeavesWhatTheEnvironmentSays) {
  constexpr const char* kName = "CUDA_MODULE_LOADING";
  ::unsetenv(kName);
  LoadKernelsAtStart();
  EXPECT_STREQ(::getenv(kName), "EAGER");
  ::setenv(kName, "LAZY", 1);
  LoadKernelsAtStart();
  EXPECT_STREQ(::getenv(kName), "LAZY");
  ::unsetenv(kName);
}

}  // namespace
}  // namespace nibble::cli
