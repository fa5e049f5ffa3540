// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/http_client.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::client {
namespace {

TEST(UrlTest, PartsAreFound) {
  const auto url = Url::Parse("http://example:81/api/v2/");
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_EQ(url->host, "example");
  EXPECT_EQ(url->port, "81");
  EXPECT_EQ(url->prefix, "/api/v2");
  EXPECT_EQ(Url::Parse("http://localhost")->port, "80");
  EXPECT_EQ(Url::Parse("http://[::1]:8000")->host, "::1");
  EXPECT_EQ(Url::Parse("http://[::1]:8000")->port, "8000");
  EXPECT_EQ(Url::Parse("http://[::1]:8000")->Authority(), "[::1]:8000");
  EXPECT_FALSE(url->tls);
  EXPECT_TRUE(Url::Parse("https://localhost")->tls);
  EXPECT_EQ(Url::Parse("https://localhost")->port, "443");
}

TEST(UrlTest, AnythingElseIsAnError) {
  for (const char* text : {"", "localhost:8000", "ftp://localhost", "http://", "http://:80",
                           "http://a:", "http://a:x", "http://a:123456", "http://a/\r\nb: c"}) {
    EXPECT_EQ(Url::Parse(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(HttpClientTest, NobodyThereIsUnavailable) {
  const HttpClient client(*Url::Parse("http://127.0.0.1:1"));
  const auto response = client.Get("/");
  EXPECT_EQ(response.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(response.status().message()), ::testing::HasSubstr("127.0.0.1:1"));
}

}  // namespace
}  // namespace nibble::client
