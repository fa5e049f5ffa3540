// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/config.h"

#include <algorithm>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;

ServeConfig Good() {
  ServeConfig config;
  config.model.model = "models/stories-llama";
  return config;
}

TEST(ServeConfigTest, DefaultsAreValid) {
  EXPECT_TRUE(Good().Validate().ok()) << Good().Validate();
}

TEST(ServeConfigTest, EveryViolationIsListedWithValueAndLimit) {
  ServeConfig config = Good();
  config.model.dtype = "float8";
  config.model.kv_cache_dtype = "fp8";
  config.model.quantization = "int3";
  config.model.head_quantization = "int2";
  config.model.threads = -1;
  config.port = 70000;
  config.max_num_batched_tokens = 10;  // below max_num_seqs
  const std::string message(config.Validate().message());
  EXPECT_THAT(message, HasSubstr("--kv-cache-dtype is 'fp8', want auto, float32, bfloat16, "
                                 "float16, int8"));
  EXPECT_THAT(message, HasSubstr("--dtype is 'float8', want auto, float32, bfloat16, float16"));
  EXPECT_THAT(message, HasSubstr("--quantization is 'int3', want none, w4a8, w8a8, w4a16"));
  EXPECT_THAT(message, HasSubstr("--head-quantization is 'int2', want auto, none, int8, int4"));
  EXPECT_THAT(message, HasSubstr("--threads is -1, want 0 to 1024"));
  EXPECT_THAT(message, HasSubstr("--port is 70000, want 0 to 65535"));
  EXPECT_THAT(message, HasSubstr("--max-num-batched-tokens is 10, want 64 to"));
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 6);
}

TEST(ServeConfigTest, TwoServersNeedTwoPorts) {
  ServeConfig config = Good();
  config.grpc_port = config.port;
  EXPECT_FALSE(config.Validate().ok());
  config.port = config.grpc_port = 0;  // any free ports
  EXPECT_TRUE(config.Validate().ok());
}

TEST(ServeConfigTest, LimitsThemselvesAreAllowed) {
  ServeConfig config = Good();
  config.grpc_port = -1;
  config.max_num_seqs = 4096;
  config.max_num_batched_tokens = 4096;
  config.max_body_bytes = 1024;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
}

}  // namespace
}  // namespace nibble::server
