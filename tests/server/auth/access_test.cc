// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who may use what: the decision, and the guard in front of an HTTP server.

#include "server/auth/access.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/auth/http_guard.h"
#include "tests/server/http/http_server_fixture.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr std::string_view kBasic = "Basic dTprZXk=";  // u:key

absl::StatusCode CodeOf(const Presented& presented) {
  static const auto* const keys = ApiKeys::Create({.keys = {"key"}})->release();
  return CheckAccess(*keys, presented).code();
}

TEST(CheckAccess, WantsOneValidKey) {
  EXPECT_EQ(CodeOf({.authorization = {"Bearer key"}}), absl::StatusCode::kOk);
  EXPECT_EQ(CodeOf({.authorization = {kBasic}}), absl::StatusCode::kOk);
  EXPECT_EQ(CodeOf({}), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf({.authorization = {"Bearer kez"}}), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf({.authorization = {"Digest key"}}), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf({.authorization = {"Bearer key", "Bearer key"}}),
            absl::StatusCode::kUnauthenticated);
}

TEST(CheckAccess, PagesOfOtherHostsMayNotUseWhatTheBrowserRemembers) {
  const auto basic = [](std::vector<std::string_view> origin, std::string_view host) {
    return CodeOf({.authorization = {kBasic}, .origin = std::move(origin), .host = host});
  };
  EXPECT_EQ(basic({}, "nibble:8000"), absl::StatusCode::kOk);
  EXPECT_EQ(basic({"http://nibble:8000"}, "nibble:8000"), absl::StatusCode::kOk);
  EXPECT_EQ(basic({"https://Nibble"}, "nibble"), absl::StatusCode::kOk);  // behind a proxy
  for (const char* origin : {"http://evil:8000", "null", "", "http://nibble", "nibble:8000",
                             "http://nibble:8000.evil", "file://nibble:8000"}) {
    EXPECT_EQ(basic({origin}, "nibble:8000"), absl::StatusCode::kPermissionDenied) << origin;
  }
  EXPECT_EQ(basic({"http://nibble:8000", "http://evil"}, "nibble:8000"),
            absl::StatusCode::kPermissionDenied);
  // A program that sends Bearer has it from its user, not from a browser's memory.
  EXPECT_EQ(CodeOf({.authorization = {"Bearer key"}, .origin = {"http://evil"}, .host = "nibble"}),
            absl::StatusCode::kOk);
}

class HttpGuardTest : public HttpServerTest {
 protected:
  void SetUp() override {
    guard_ = MakeKeyGuard(*ApiKeys::Create({.keys = {"key"}}));
    StartServer();
  }
  static std::string Request(const std::string& method, const std::string& path,
                             const std::string& headers = "", const std::string& body = "") {
    return method + " " + path + " HTTP/1.1\r\nHost: x\r\n" + headers +
           "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
};

TEST_F(HttpGuardTest, ComesBeforeAnythingIsSaidOfTheBody) {
  const std::string post = "POST /echo HTTP/1.1\r\nHost: x\r\n";
  const std::string large = "Content-Length: 99999999999\r\n\r\n";
  EXPECT_THAT(Ask(post + large), StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(Ask(post + "Expect: magic\r\nContent-Length: 1\r\n\r\n"), StartsWith("HTTP/1.1 401"));
  // Not a byte of it is read or invited.
  EXPECT_THAT(Ask(post + "Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"),
              StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(Ask(post + "Transfer-Encoding: chunked\r\n\r\n"), StartsWith("HTTP/1.1 401"));
  const std::string with_key = post + "Authorization: Bearer key\r\n";
  EXPECT_THAT(Ask(with_key + large), StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(Ask(with_key + "Expect: magic\r\nContent-Length: 1\r\n\r\n"),
              StartsWith("HTTP/1.1 417"));
  // What is no request has no key to show.
  EXPECT_THAT(Ask("GET /hello HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpGuardTest, NoRouteIsOpenByItself) {
  std::vector<std::string> requests = {
      "GET /nothing/here",    "DELETE /hello", "OPTIONS *",          "PUT /x",     "GET /health/",
      "GET /health/../hello", "GET //health",  "POST /health/livex", "GET /Health"};
  const std::vector<std::string> routes = server_->Routes();
  ASSERT_THAT(routes, ::testing::Contains("POST /echo"));
  requests.insert(requests.end(), routes.begin(), routes.end());
  for (const std::string& request : requests) {
    const size_t space = request.find(' ');
    const std::string answer = Ask(Request(request.substr(0, space), request.substr(space + 1)));
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 401 Unauthorized\r\n")) << request;
    EXPECT_THAT(answer, HasSubstr("WWW-Authenticate: Bearer\r\n"));
    EXPECT_THAT(answer, HasSubstr("WWW-Authenticate: Basic realm=\"nibble\"\r\n"));
    EXPECT_THAT(answer, HasSubstr("x-request-id: "));
  }
}

TEST_F(HttpGuardTest, HealthIsOpenAndKeysOpenTheRest) {
  for (const char* path : {"/health", "/health/live", "/health/ready"}) {
    EXPECT_THAT(Ask(Request("GET", path)), StartsWith("HTTP/1.1 404")) << path;  // no such route
  }
  EXPECT_THAT(Ask(Request("GET", "/hello", "Authorization: Bearer key\r\n")), HasSubstr(" 200 "));
  EXPECT_THAT(Ask(Request("GET", "/hello", "authorization: basic dTprZXk=\r\n")),
              HasSubstr(" 200 "));
  EXPECT_THAT(Ask(Request("GET", "/no", "Authorization: Bearer key\r\n")), HasSubstr(" 404 "));
  EXPECT_THAT(Ask(Request("POST", "/echo",
                          "Authorization: Basic dTprZXk=\r\nOrigin: http://evil\r\n", "x")),
              HasSubstr(" 403 "));
  EXPECT_THAT(
      Ask(Request("POST", "/echo", "Authorization: Basic dTprZXk=\r\nOrigin: http://x\r\n", "x")),
      HasSubstr(" 200 "));
}

TEST_F(HttpGuardTest, TheConnectionOutlivesARefusalWithoutBody) {
  testing::RawClient client(port());
  client.Send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 401"));
  client.Send("GET /hello HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\n\r\n" +
              Request("GET", "/hello"));
  EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(client.ReadResponse().first, StartsWith("HTTP/1.1 401"));
}

TEST_F(HttpGuardTest, BodiesOfStrangersAreNotRead) {
  testing::RawClient client(port());
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n");
  const std::string head = client.ReadResponse().first;  // before a byte of the body came
  EXPECT_THAT(head, StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(head, HasSubstr("Connection: close"));
  testing::RawClient expectant(port());
  expectant.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n");
  EXPECT_THAT(expectant.ReadResponse().first, StartsWith("HTTP/1.1 401"));
  // A key in a trailer comes too late.
  EXPECT_THAT(Ask("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                  "0\r\nAuthorization: Bearer key\r\n\r\n"),
              StartsWith("HTTP/1.1 401"));
}

TEST_F(HttpGuardTest, AnswersSayNothingOfKeys) {
  EXPECT_THAT(Ask(Request("GET", "/hello", "Authorization: Bearer wrong-secret\r\n")),
              Not(HasSubstr("wrong-secret")));
}

}  // namespace
}  // namespace nibble::server
