// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/request_reader.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "boost/asio/buffer.hpp"
#include "boost/beast/http/error.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/string_body.hpp"
#include "fmt/core.h"

#include "server/http/http_format.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

std::string_view View(boost::beast::string_view view) { return {view.data(), view.size()}; }

bool EqualsIgnoreCase(std::string_view a, std::string_view b) {
  return boost::beast::iequals({a.data(), a.size()}, {b.data(), b.size()});
}

std::string Lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return result;
}

}  // namespace

struct RequestReader::Parser {
  http::request_parser<http::string_body> beast;
};

RequestReader::RequestReader(const Limits& limits)
    : limits_(limits), parser_(std::make_unique<Parser>()) {
  parser_->beast.header_limit(static_cast<uint32_t>(limits_.max_header_bytes));
  // Checked by us once the header is in, so that the refusal can name the size.
  parser_->beast.body_limit(boost::none);
}

RequestReader::~RequestReader() = default;

bool RequestReader::has_body() const { return !parser_->beast.is_done(); }

RequestReader::Event RequestReader::Refuse(int status, std::string message) {
  refusal_ = {.status = status, .message = std::move(message)};
  return Event::kRefused;
}

RequestReader::Event RequestReader::Read(std::string_view input, size_t* num_taken) {
  auto& parser = parser_->beast;
  if (head_done_ && !std::exchange(body_checked_, true) && !CheckBody()) return Event::kRefused;
  // The parser would wait for line ends that never come, or take it for something else.
  if (!head_done_ && HasBareLineFeed(input)) {
    return Refuse(400, "malformed HTTP request: a line ends with LF, want CR LF");
  }
  while (!input.empty() && !parser.is_done()) {
    error_code error;
    size_t taken = 0;
    try {
      taken = parser.put(asio::const_buffer(input.data(), input.size()), error);
    } catch (const std::exception& problem) {  // a field longer than Beast's 16-bit lengths
      return Refuse(431, fmt::format("request header: {}", problem.what()));
    }
    *num_taken += taken;
    input.remove_prefix(taken);
    if (error == http::error::need_more) {
      // Also bounds what the parser does not: chunk extensions and trailers.
      if (static_cast<int64_t>(input.size()) <= limits_.max_header_bytes) return Event::kMore;
      error = http::error::header_limit;
    }
    if (error == http::error::header_limit) {
      return Refuse(431,
                    fmt::format("request header of more than {} bytes", limits_.max_header_bytes));
    }
    if (error == http::error::body_limit) {
      return Refuse(413, fmt::format("request body of more than {} bytes, the limit",
                                     limits_.max_body_bytes));
    }
    if (error == http::error::bad_version) return Refuse(505, "want HTTP/1.1 or HTTP/1.0");
    if (error) return Refuse(400, "malformed HTTP request: " + error.message());
    if (parser.is_header_done() && !std::exchange(head_done_, true)) {
      return CheckHead() ? Event::kHead : Event::kRefused;
    }
  }
  if (!parser.is_done()) return Event::kMore;
  request_.body = std::move(parser.get().body());
  return Event::kWhole;
}

bool RequestReader::HasBareLineFeed(std::string_view input) {
  constexpr std::string_view kEnd = "\r\n\r\n";
  const size_t from = std::max(num_bytes_checked_, kEnd.size()) - kEnd.size();
  const std::string_view head = input.substr(0, input.find(kEnd, from));
  size_t at = head.find('\n', num_bytes_checked_);
  while (at != std::string_view::npos && at > 0 && head[at - 1] == '\r') {
    at = head.find('\n', at + 1);
  }
  num_bytes_checked_ = head.size();
  return at != std::string_view::npos;
}

bool RequestReader::CheckHead() {
  auto& parser = parser_->beast;
  const auto& message = parser.get();
  const auto refuse = [this](int status, std::string text) {
    Refuse(status, std::move(text));
    return false;
  };
  http_1_0_ = message.version() == 10;
  keep_alive_ = message.keep_alive();
  request_.method = std::string(View(message.method_string()));
  const auto num_fields = static_cast<size_t>(std::distance(message.begin(), message.end()));
  if (num_fields > kMaxFields) {
    return refuse(
        431, fmt::format("request header of {} fields, the limit is {}", num_fields, kMaxFields));
  }
  for (const auto& field : message) {
    request_.headers.emplace_back(Lower(View(field.name_string())),
                                  std::string(View(field.value())));
  }
  if (message.version() == 11 && message.count(http::field::host) != 1) {
    return refuse(400, fmt::format("an HTTP/1.1 request has exactly one Host header, not {}",
                                   message.count(http::field::host)));
  }
  // Anything but plain chunked would be a body of unknown length: the door to request smuggling.
  if (const size_t codings = message.count(http::field::transfer_encoding); codings > 0) {
    if (codings > 1 || http_1_0_) return refuse(400, "bad Transfer-Encoding");
    if (!EqualsIgnoreCase(View(message[http::field::transfer_encoding]), "chunked")) {
      return refuse(501, "the only Transfer-Encoding served is chunked");
    }
  }
  auto target = ParseRequestTarget(View(message.target()));
  if (!target.has_value()) return refuse(400, "malformed request target");
  request_.path = std::move(target->path);
  request_.query = std::move(target->query);
  return true;
}

bool RequestReader::CheckBody() {
  auto& parser = parser_->beast;
  auto& message = parser.get();
  const auto limit = static_cast<uint64_t>(limits_.max_body_bytes);
  if (const auto length = parser.content_length(); length.has_value() && *length > limit) {
    Refuse(413, fmt::format("request body of {} bytes, the limit is {}", *length, limit));
    return false;
  }
  parser.body_limit(limit);

  const std::string expect(View(message[http::field::expect]));
  message.clear();  // ours are in request_; what comes from here on are trailers
  if (expect.empty() || http_1_0_) return true;
  if (!EqualsIgnoreCase(expect, "100-continue")) {
    Refuse(417, "the only expectation served is 100-continue");
    return false;
  }
  expects_continue_ = true;
  return true;
}

}  // namespace nibble::server
