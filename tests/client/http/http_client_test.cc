// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/http_client.h"

#include <atomic>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/client/http/scripted_server.h"

namespace nibble::client {
namespace {

TEST(UrlTest, PartsAreFound) {
  const auto url = Url::Parse("http://example:81/api/v2/");
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_EQ(url->host, "example");
  EXPECT_EQ(url->port, "81");
  EXPECT_EQ(url->prefix, "/api/v2");
  EXPECT_EQ(Url::Parse("http://localhost")->port, "80");
  for (const auto& [text, prefix] :
       {std::pair("http://host/v1", ""), std::pair("http://host/v1/", ""),
        std::pair("https://host:81/a/v1", "/a")}) {
    EXPECT_EQ(Url::Parse(text)->prefix, prefix) << text;
  }
  EXPECT_EQ(Url::Parse("http://[::1]:8000")->host, "::1");
  EXPECT_EQ(Url::Parse("http://[::1]:8000")->port, "8000");
  EXPECT_EQ(Url::Parse("http://[::1]:8000")->Authority(), "[::1]:8000");
  EXPECT_FALSE(url->tls);
  EXPECT_TRUE(Url::Parse("https://localhost")->tls);
  EXPECT_EQ(Url::Parse("https://localhost")->port, "443");
}

TEST(UrlTest, AnythingElseIsAnError) {
  for (const char* text : {"", "localhost:8000", "ftp://localhost", "http://", "http://:80",
                           "http://a:", "http://a:x", "http://a:123456", "http://a:65536",
                           "http://a:99999", "http://a:0", "http://a:+1", "http://a/\r\nb: c"}) {
    EXPECT_EQ(Url::Parse(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(UrlTest, ThePortsThatThereAre) {
  EXPECT_EQ(Url::Parse("http://a:65535")->port, "65535");
  EXPECT_EQ(Url::Parse("http://a:1")->port, "1");
}

TEST(HttpClientTest, ConnectionsAreKept) {
  testing::ScriptedServer server([](testing::Peer& peer) {
    while (!peer.ReadRequest().empty()) peer.Send(testing::Answer(std::to_string(peer.idx)));
  });
  HttpClient client(*Url::Parse(server.url()));
  for (int i = 0; i < 3; ++i) {
    const auto response = client.Get("/");
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->body, "0");
  }
  EXPECT_EQ(server.num_connections(), 1);
}

TEST(HttpClientTest, EveryRequestCanBeCancelled) {
  std::atomic<bool> cancel{false};
  testing::ScriptedServer server([&](testing::Peer& peer) {
    peer.ReadRequest();
    cancel = true;
    peer.WaitForEnd();
  });
  HttpClient client(*Url::Parse(server.url()));
  client.SetCancel(&cancel);
  EXPECT_TRUE(absl::IsCancelled(client.Get("/").status()));
}

TEST(HttpClientTest, AStreamEndsOnceItIsNotWantedAnyMore) {
  testing::ScriptedServer server([&](testing::Peer& peer) {
    peer.ReadRequest();
    peer.Send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
    peer.WaitForEnd();
  });
  HttpClient client(*Url::Parse(server.url()));
  const std::atomic<bool> cancel{false};
  const auto on_data = [](std::string_view) { return false; };
  EXPECT_TRUE(absl::IsCancelled(client.PostStream("/", "{}", on_data, cancel).status()));
}

TEST(HttpClientTest, OptionsOfTlsWantIt) {
  for (const ClientSecurity& security :
       {ClientSecurity{.ca_cert = "c"}, ClientSecurity{.cert = "c", .key = "k"},
        ClientSecurity{.insecure = true}}) {
    const auto response = HttpClient(*Url::Parse("http://127.0.0.1:1"), security).Get("/");
    EXPECT_EQ(response.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(response.status().message()), ::testing::HasSubstr("https://"));
  }
}

TEST(HttpClientTest, AKeyCannotEndItsHeader) {
  const auto response =
      HttpClient(*Url::Parse("http://127.0.0.1:1"), {.api_key = "a\r\nb: c"}).Get("/");
  EXPECT_EQ(response.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(HttpClientTest, NobodyThereIsUnavailable) {
  HttpClient client(*Url::Parse("http://127.0.0.1:1"));
  const auto response = client.Get("/");
  EXPECT_EQ(response.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(response.status().message()), ::testing::HasSubstr("127.0.0.1:1"));
}

}  // namespace
}  // namespace nibble::client
