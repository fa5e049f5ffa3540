// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/dynamic_library.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

TEST(DynamicLibrary, FindsFunctions) {
  const auto library = DynamicLibrary::Open("libm.so.6");
  ASSERT_TRUE(library.ok()) << library.status();
  double (*cosine)(double) = nullptr;
  ASSERT_TRUE(library->Find("cos", &cosine).ok());
  EXPECT_EQ(cosine(0.0), 1.0);
}

TEST(DynamicLibrary, NamesTheFileThatIsMissing) {
  const auto library = DynamicLibrary::Open("libthere-is-none.so.1");
  EXPECT_EQ(library.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(library.status().message()), HasSubstr("libthere-is-none.so.1"));
}

TEST(DynamicLibrary, NamesTheFunctionThatIsMissing) {
  const auto library = DynamicLibrary::Open("libm.so.6");
  ASSERT_TRUE(library.ok()) << library.status();
  void (*function)() = nullptr;
  const absl::Status status = library->Find("no_such_function", &function);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("libm.so.6 has no no_such_function"));
  EXPECT_EQ(function, nullptr);
}

}  // namespace
}  // namespace nibble
