// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/guard_metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(GuardMetricsTest, CountersAreThereFromTheStartAndNoCertificateHasNoEnd) {
  const std::string text = GuardMetrics({}, "m");
  EXPECT_THAT(text, Not(HasSubstr("nibble:tls_")));
  EXPECT_THAT(text,
              HasSubstr("nibble:api_key_file_errors_total{engine=\"0\",model_name=\"m\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("nibble:api_key_file_stale{engine=\"0\",model_name=\"m\"} 0\n"));
}

TEST(GuardMetricsTest, SecondsAreWhole) {
  const std::string text = GuardMetrics({.certificate_expiry_unix_seconds = 1'893'456'007,
                                         .key_file_is_stale = true,
                                         .num_key_file_errors = 3},
                                        "a \"model\"");
  const std::string labels = R"({engine="0",model_name="a \"model\""} )";
  EXPECT_THAT(
      text, HasSubstr("nibble:tls_certificate_expiry_timestamp_seconds" + labels + "1893456007\n"));
  EXPECT_THAT(text, HasSubstr("nibble:api_key_file_stale" + labels + "1\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE nibble:api_key_file_errors_total counter\n"));
  EXPECT_THAT(text, HasSubstr("nibble:api_key_file_errors_total" + labels + "3\n"));
}

}  // namespace
}  // namespace nibble::server
