// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/request_reader.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using Event = RequestReader::Event;

constexpr RequestReader::Limits kLimits = {.max_header_bytes = 4096, .max_body_bytes = 100};
constexpr std::string_view kPost = "POST /a%20b?q=1 HTTP/1.1\r\nHost: x\r\n";

// Reads until there is no more to get out of `input`.
Event ReadOn(RequestReader* reader, std::string_view* input) {
  for (;;) {
    size_t taken = 0;
    const Event event = reader->Read(*input, &taken);
    input->remove_prefix(taken);
    if (event != Event::kHead) return event;
  }
}

TEST(RequestReader, TheHeadComesBeforeItsBody) {
  RequestReader reader(kLimits);
  const std::string text = std::string(kPost) + "X-In: A b \r\nContent-Length: 3\r\n\r\nabcGET";
  size_t taken = 0;
  ASSERT_EQ(reader.Read(text, &taken), Event::kHead);
  EXPECT_EQ(reader.request().method, "POST");
  EXPECT_EQ(reader.request().path, "/a b");
  EXPECT_EQ(reader.request().query, "q=1");
  EXPECT_THAT(reader.request().headers,
              ElementsAre(Pair("host", "x"), Pair("x-in", "A b"), Pair("content-length", "3")));
  EXPECT_TRUE(reader.has_head());
  EXPECT_TRUE(reader.has_body());
  EXPECT_TRUE(reader.keep_alive());
  ASSERT_EQ(reader.Read(std::string_view(text).substr(taken), &taken), Event::kWhole);
  EXPECT_EQ(reader.request().body, "abc");
  EXPECT_EQ(text.substr(taken), "GET");  // the next request's
}

TEST(RequestReader, AnyPiecesMakeTheSameRequest) {
  const std::string text = std::string(kPost) +
                           "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;e\r\nde\r\n0\r\nT: "
                           "1\r\n\r\n";
  for (size_t step = 1; step <= text.size(); ++step) {
    RequestReader reader(kLimits);
    std::string arrived;
    Event event = Event::kMore;
    for (size_t at = 0; at < text.size() && event == Event::kMore; at += step) {
      arrived += text.substr(at, step);
      std::string_view rest = arrived;
      event = ReadOn(&reader, &rest);
      arrived = std::string(rest);
    }
    EXPECT_EQ(event, Event::kWhole) << step;
    EXPECT_EQ(reader.request().body, "abcde") << step;
    EXPECT_EQ(reader.request().headers.size(), 2U) << step;  // trailers are none
  }
}

TEST(RequestReader, RefusalsHaveAStatusAndAReason) {
  struct Case {
    int status;
    std::string text;
    std::string reason;
    bool has_head;
  };
  const std::string post(kPost);
  const Case cases[] = {
      {400, "GET / HTTP/1.1\nHost: x\n\n", "LF", false},
      {400, post + "X: a\n\r\n", "LF", false},
      {400, post + "no colon\r\n\r\n", "malformed", false},
      {400, "GET / HTTP/1.1\r\n\r\n", "Host header, not 0", true},
      {400, post + "Host: y\r\n\r\n", "Host header, not 2", true},
      {400, "GET /% HTTP/1.1\r\nHost: x\r\n\r\n", "target", true},
      {501, post + "Transfer-Encoding: gzip\r\n\r\n", "chunked", true},
      {505, "GET / HTTP/2.0\r\nHost: x\r\n\r\n", "HTTP/1.1", false},
      {431, post + "X: " + std::string(5000, 'x'), "4096", false},
      {413, post + "Content-Length: 101\r\n\r\n", "101 bytes, the limit is 100", true},
      {413, post + "Transfer-Encoding: chunked\r\n\r\n65\r\n", "100", true},
      {417, post + "Expect: magic\r\nContent-Length: 1\r\n\r\n", "100-continue", true},
  };
  for (const Case& wrong : cases) {
    RequestReader reader(kLimits);
    std::string_view rest = wrong.text;
    EXPECT_EQ(ReadOn(&reader, &rest), Event::kRefused) << wrong.text;
    EXPECT_EQ(reader.refusal().status, wrong.status) << wrong.text;
    EXPECT_THAT(reader.refusal().message, HasSubstr(wrong.reason));
    EXPECT_EQ(reader.has_head(), wrong.has_head) << wrong.text;
  }
}

TEST(RequestReader, LineFeedsOfBodiesAreTheirs) {
  RequestReader reader(kLimits);
  const std::string text = std::string(kPost) + "Content-Length: 4\r\n\r\na\n\nb";
  std::string_view rest = text;
  EXPECT_EQ(ReadOn(&reader, &rest), Event::kWhole);
  EXPECT_EQ(reader.request().body, "a\n\nb");
}

}  // namespace
}  // namespace nibble::server
