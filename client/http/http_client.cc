// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/http_client.h"

#include <chrono>
#include <optional>
#include <utility>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>

namespace nibble::client {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr auto kPollInterval = std::chrono::milliseconds(100);
constexpr auto kConnectTimeout = std::chrono::seconds(10);
constexpr auto kGetTimeout = std::chrono::seconds(30);
constexpr uint64_t kMaxBodyBytes = uint64_t{256} << 20;

// One request on one connection. Every asynchronous operation is driven by Wait(), which looks at
// `cancel` in between.
class Exchange {
 public:
  Exchange(const Url& url, const std::atomic<bool>* cancel)
      : url_(url), cancel_(cancel), stream_(io_) {}

  absl::Status Connect() {
    beast::error_code error;
    asio::ip::tcp::resolver resolver(io_);
    const auto endpoints = resolver.resolve(url_.host, url_.port, error);
    if (error) return Failure("resolve", error);
    stream_.expires_after(kConnectTimeout);
    std::optional<beast::error_code> result;
    stream_.async_connect(endpoints, [&](beast::error_code code, const auto&) { result = code; });
    NIBBLE_RETURN_IF_ERROR(Wait(result, "connect"));
    // A generated answer may take as long as it takes: there is cancel_. Anything else is at hand.
    if (cancel_ != nullptr) {
      stream_.expires_never();
    } else {
      stream_.expires_after(kGetTimeout);
    }
    return absl::OkStatus();
  }

  absl::Status Send(http::verb verb, std::string_view path, std::string body) {
    http::request<http::string_body> request(verb, url_.prefix + std::string(path), 11);
    const bool is_ipv6 = url_.host.find(':') != std::string::npos;
    request.set(http::field::host, (is_ipv6 ? "[" + url_.host + "]" : url_.host) + ":" + url_.port);
    request.set(http::field::user_agent, "nibble");
    request.set(http::field::connection, "close");
    if (verb == http::verb::post) request.set(http::field::content_type, "application/json");
    request.body() = std::move(body);
    request.prepare_payload();
    std::optional<beast::error_code> result;
    http::async_write(stream_, request, [&](beast::error_code code, size_t) { result = code; });
    return Wait(result, "send to");
  }

  absl::StatusOr<HttpResponse> Receive(const std::function<void(std::string_view)>* on_data) {
    parser_.body_limit(kMaxBodyBytes);
    parser_.eager(true);  // body bytes are taken as soon as they are there
    HttpResponse response;
    const auto take = [&](std::string_view bytes) {
      if (on_data != nullptr && parser_.get().result_int() == 200) {
        (*on_data)(bytes);
      } else {
        response.body += bytes;
      }
    };
    // Chunks are taken while parsing: a read does not end before the head of the next chunk is
    // there, so an answer would lag one chunk behind.
    auto on_chunk = [&](uint64_t, beast::string_view bytes, beast::error_code&) {
      take(std::string_view(bytes.data(), bytes.size()));
      return bytes.size();
    };
    parser_.on_chunk_body(on_chunk);
    while (!parser_.is_done()) {
      std::optional<beast::error_code> result;
      http::async_read_some(stream_, buffer_, parser_,
                            [&](beast::error_code code, size_t) { result = code; });
      NIBBLE_RETURN_IF_ERROR(Wait(result, "read from"));
      if (!parser_.is_header_done()) continue;
      response.status = static_cast<int>(parser_.get().result_int());
      std::string& body = parser_.get().body();
      if (!body.empty()) take(body);
      body.clear();
    }
    return response;
  }

 private:
  absl::Status Failure(std::string_view action, const beast::error_code& error) const {
    return Unavailable("cannot {} {}:{}: {}", action, url_.host, url_.port, error.message());
  }

  absl::Status Wait(std::optional<beast::error_code>& result, std::string_view action) {
    io_.restart();
    while (!result.has_value()) {
      io_.run_for(kPollInterval);
      if (io_.stopped()) io_.restart();
      if (cancel_ != nullptr && cancel_->load()) {
        stream_.close();
        while (!result.has_value()) {  // the handler refers to this frame
          io_.restart();
          io_.run();
        }
        return absl::CancelledError("cancelled");
      }
    }
    return *result ? Failure(action, *result) : absl::OkStatus();
  }

  const Url& url_;
  const std::atomic<bool>* cancel_;
  asio::io_context io_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
};

}  // namespace

absl::StatusOr<Url> Url::Parse(std::string_view text) {
  constexpr std::string_view kScheme = "http://";
  const auto error = [&] {
    return InvalidArgument("'{}' is not an address, want http://HOST[:PORT]", text);
  };
  if (!text.starts_with(kScheme)) return error();
  std::string_view rest = text.substr(kScheme.size());
  Url url;
  if (const size_t slash = rest.find('/'); slash != std::string_view::npos) {
    url.prefix = rest.substr(slash);
    while (!url.prefix.empty() && url.prefix.back() == '/') url.prefix.pop_back();
    rest = rest.substr(0, slash);
  }
  url.port = "80";
  const size_t bracket = rest.find(']');  // [::1]:8000
  const size_t colon = rest.find(':', bracket == std::string_view::npos ? 0 : bracket);
  if (colon != std::string_view::npos) {
    url.port = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
  }
  if (rest.starts_with('[') && rest.ends_with(']')) rest = rest.substr(1, rest.size() - 2);
  url.host = rest;
  if (url.host.empty() || url.port.empty() || url.port.size() > 5 ||
      url.port.find_first_not_of("0123456789") != std::string::npos) {
    return error();
  }
  return url;
}

absl::StatusOr<HttpResponse> HttpClient::Get(std::string_view path) const {
  Exchange exchange(url_, nullptr);
  NIBBLE_RETURN_IF_ERROR(exchange.Connect());
  NIBBLE_RETURN_IF_ERROR(exchange.Send(http::verb::get, path, ""));
  return exchange.Receive(nullptr);
}

absl::StatusOr<HttpResponse> HttpClient::PostStream(
    std::string_view path, std::string body, const std::function<void(std::string_view)>& on_data,
    const std::atomic<bool>& cancel) const {
  Exchange exchange(url_, &cancel);
  NIBBLE_RETURN_IF_ERROR(exchange.Connect());
  NIBBLE_RETURN_IF_ERROR(exchange.Send(http::verb::post, path, std::move(body)));
  return exchange.Receive(&on_data);
}

}  // namespace nibble::client
