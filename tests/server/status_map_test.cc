// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/status_map.h"

#include "gtest/gtest.h"

namespace nibble::server {
namespace {

TEST(StatusMap, EveryCodeHasItsOwnEntry) {
  for (int code = 0; code <= 16; ++code) {
    const StatusMapping& mapping = MapStatus(static_cast<absl::StatusCode>(code));
    EXPECT_EQ(mapping.grpc_code, code);  // gRPC and Abseil share their numbers
    EXPECT_EQ(mapping.http_status == 200, code == 0);
    EXPECT_EQ(mapping.openai_type.empty(), code == 0);
  }
}

TEST(StatusMap, WhatClientsActOn) {
  using absl::StatusCode;
  EXPECT_EQ(MapStatus(StatusCode::kInvalidArgument).http_status, 400);
  EXPECT_EQ(MapStatus(StatusCode::kInvalidArgument).openai_type, "invalid_request_error");
  EXPECT_EQ(MapStatus(StatusCode::kNotFound).http_status, 404);
  EXPECT_EQ(MapStatus(StatusCode::kResourceExhausted).http_status, 429);
  EXPECT_GT(MapStatus(StatusCode::kResourceExhausted).retry_after_seconds, 0);
  EXPECT_EQ(MapStatus(StatusCode::kUnavailable).http_status, 503);
  EXPECT_GT(MapStatus(StatusCode::kUnavailable).retry_after_seconds, 0);
  EXPECT_EQ(MapStatus(StatusCode::kInternal).http_status, 500);
  EXPECT_EQ(MapStatus(static_cast<StatusCode>(99)).http_status, 500);
}

}  // namespace
}  // namespace nibble::server
