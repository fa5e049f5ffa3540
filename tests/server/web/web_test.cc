// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/web/web.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/web/embedded_files.h"
#include "tests/server/http/raw_client.h"

namespace nibble::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RawClient;
using ::testing::StartsWith;

struct Response {
  std::string head;
  std::string body;
};

class WebTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = HttpServer::Create({.port = 0});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(server).value();
    RegisterWeb(server_.get());
    ASSERT_TRUE(server_->Start().ok());
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Stop();
  }
  Response Get(const std::string& path, const std::string& headers = "") {
    RawClient client(server_->port());
    client.Send("GET " + path + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n");
    auto [head, body] = client.ReadResponse();
    return {std::move(head), std::move(body)};
  }
  // Value of a header of `response`, or "".
  static std::string Header(const Response& response, const std::string& name) {
    const size_t at = response.head.find("\r\n" + name + ": ");
    if (at == std::string::npos) return "";
    const size_t begin = at + name.size() + 4;
    return response.head.substr(begin, response.head.find("\r\n", begin) - begin);
  }
  static std::string PathOf(const EmbeddedFile& file) {
    return file.name == "index.html" ? "/" : "/web/" + std::string(file.name);
  }

  std::unique_ptr<HttpServer> server_;
};

TEST_F(WebTest, EveryFileIsServedAsItIs) {
  size_t num_files = 0;
  for (const EmbeddedFile& file : embedded::server_web::EmbeddedFiles()) {
    SCOPED_TRACE(file.name);
    const Response response = Get(PathOf(file));
    EXPECT_THAT(response.head, StartsWith("HTTP/1.1 200 "));
    EXPECT_EQ(response.body, file.bytes);
    EXPECT_FALSE(file.bytes.empty());
    ++num_files;
  }
  EXPECT_GE(num_files, 10u);
}

TEST_F(WebTest, TheFilesOfTheTreeAreEmbedded) {
  for (const char* path : {"server/web/index.html", "server/web/main.js", "base/web/theme.css"}) {
    std::ifstream stream(std::string(NIBBLE_SOURCE_DIR) + "/" + path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(stream)), {});
    const std::string_view name =
        std::string_view(path).substr(std::string_view(path).rfind('/') + 1);
    EXPECT_EQ(FindEmbedded(embedded::server_web::EmbeddedFiles(), name), text) << path;
  }
  EXPECT_EQ(FindEmbedded(embedded::server_web::EmbeddedFiles(), "absent.js"), "");
}

TEST_F(WebTest, TypesAreNamedAndNotGuessed) {
  EXPECT_EQ(Header(Get("/"), "Content-Type"), "text/html; charset=utf-8");
  EXPECT_EQ(Header(Get("/web/main.js"), "Content-Type"), "text/javascript; charset=utf-8");
  EXPECT_EQ(Header(Get("/web/theme.css"), "Content-Type"), "text/css; charset=utf-8");
  EXPECT_EQ(Header(Get("/web/icon.svg"), "Content-Type"), "image/svg+xml; charset=utf-8");
  EXPECT_EQ(Header(Get("/"), "X-Content-Type-Options"), "nosniff");
}

TEST_F(WebTest, NothingInlineAndNothingFromElsewhere) {
  for (const EmbeddedFile& file : embedded::server_web::EmbeddedFiles()) {
    SCOPED_TRACE(file.name);
    const Response response = Get(PathOf(file));
    const std::string policy = Header(response, "Content-Security-Policy");
    for (const char* rule :
         {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
          "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"}) {
      EXPECT_THAT(policy, HasSubstr(rule));
    }
    EXPECT_THAT(policy, Not(HasSubstr("unsafe")));
    EXPECT_THAT(policy, Not(HasSubstr("*")));
    EXPECT_EQ(Header(response, "Referrer-Policy"), "no-referrer");
    // The page would not work where the policy is obeyed.
    EXPECT_THAT(response.body, AllOf(Not(HasSubstr("<script>")), Not(HasSubstr("<style")),
                                     Not(HasSubstr(" style=\"")), Not(HasSubstr("onclick=\""))));
    // What a model says is text.
    EXPECT_THAT(response.body, AllOf(Not(HasSubstr("innerHTML")), Not(HasSubstr("outerHTML")),
                                     Not(HasSubstr("insertAdjacentHTML")),
                                     Not(HasSubstr("document.write")), Not(HasSubstr("eval("))));
  }
}

TEST_F(WebTest, AnUnchangedFileIsNotSentAgain) {
  const std::string page_tag = Header(Get("/"), "ETag");
  const std::string script_tag = Header(Get("/web/main.js"), "ETag");
  EXPECT_THAT(page_tag, ::testing::MatchesRegex("\"[0-9a-f]+\""));
  EXPECT_NE(page_tag, script_tag);
  EXPECT_EQ(Header(Get("/"), "Cache-Control"), "no-cache");

  for (const std::string& tags : {page_tag, "W/" + page_tag, "\"other\", " + page_tag,
                                  script_tag + " ,\t" + page_tag, std::string("*")}) {
    const Response response = Get("/", "If-None-Match: " + tags + "\r\n");
    EXPECT_THAT(response.head, StartsWith("HTTP/1.1 304 Not Modified\r\n")) << tags;
    EXPECT_EQ(Header(response, "ETag"), page_tag);
    EXPECT_EQ(Header(response, "Content-Length"), "") << "of the page's, or none";
    EXPECT_EQ(Header(response, "Content-Type"), "");
    EXPECT_EQ(response.body, "");
  }
  for (const std::string& tags : {script_tag, std::string("\"\""), std::string(","),
                                  page_tag.substr(0, page_tag.size() - 1)}) {
    EXPECT_THAT(Get("/", "If-None-Match: " + tags + "\r\n").head, StartsWith("HTTP/1.1 200 "))
        << tags;
  }
}

TEST_F(WebTest, AConnectionGoesOnAfterNotModified) {
  const std::string tag = Header(Get("/"), "ETag");
  RawClient client(server_->port());
  client.Send("GET / HTTP/1.1\r\nHost: x\r\nIf-None-Match: " + tag +
              "\r\n\r\nGET /web/main.js HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), StartsWith("HTTP/1.1 304 "));
  const auto [head, body] = client.ReadResponse();
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200 "));
  EXPECT_EQ(body, FindEmbedded(embedded::server_web::EmbeddedFiles(), "main.js"));
}

TEST_F(WebTest, HeadHasTheLengthAndNoBody) {
  RawClient client(server_->port());
  client.Send("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string all = client.ReadAll();
  const size_t size = FindEmbedded(embedded::server_web::EmbeddedFiles(), "index.html").size();
  EXPECT_THAT(all, AllOf(StartsWith("HTTP/1.1 200 "), ::testing::EndsWith("\r\n\r\n"),
                         HasSubstr("Content-Length: " + std::to_string(size) + "\r\n")));
}

TEST_F(WebTest, OtherPathsAndMethodsAreRefused) {
  for (const char* path :
       {"/web/", "/web/index.html", "/web/../web.cc", "/web/web.cc", "/index.html"}) {
    EXPECT_THAT(Get(path).head, StartsWith("HTTP/1.1 404 ")) << path;
  }
  RawClient client(server_->port());
  client.Send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
  EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 405 "));
}

}  // namespace
}  // namespace nibble::server
