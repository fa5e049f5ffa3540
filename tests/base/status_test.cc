// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/status.h"

#include <memory>

#include "gtest/gtest.h"

namespace nibble {
namespace {

absl::StatusOr<std::unique_ptr<int>> Make(bool fail) {
  if (fail) return InvalidArgument("n is {}, the limit is {}", 7, 3);
  return std::make_unique<int>(5);
}

absl::StatusOr<int> Use(bool fail) {
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<int> value, Make(fail));
  NIBBLE_RETURN_IF_ERROR(absl::OkStatus());
  return *value;
}

TEST(StatusTest, MacrosPassValuesAndErrors) {
  EXPECT_EQ(Use(false).value(), 5);
  EXPECT_EQ(Use(true).status().message(), "n is 7, the limit is 3");
}

TEST(StatusTest, AnnotateKeepsTheCode) {
  const absl::Status status = Annotate(NotFound("no tensor"), "model.safetensors");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "model.safetensors: no tensor");
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
}

}  // namespace
}  // namespace nibble
