// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A small HTTP/1.1 server interface: routes in, bytes out. Knows nothing of JSON or models.
// Boost.Beast stays behind http_connection.cc because its headers cost 20 s per source.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble::server {

struct RequestTrace;  // server/request_log/request_trace.h
class TlsSource;      // server/tls/tls_source.h

struct HttpServerConfig {
  std::string host = "127.0.0.1";
  int port = 8000;                             // 0: any free port, see HttpServer::port()
  int num_threads = 2;                         // io threads, 1..64
  int64_t max_body_bytes = int64_t{16} << 20;  // larger: 413 naming size and limit
  int64_t max_header_bytes = 64 << 10;         // larger: 431
  // More: accepted and closed with 503. Start() lowers it to what the limit of open files leaves
  // beside reserved_files, which other parts of the process may open.
  int64_t max_connections = 16384;
  int64_t reserved_files = 0;
  // What all connections together may hold of requests that are not answered yet. More: 503, but
  // for requests that are still below 16 KiB, so that probes are answered meanwhile.
  int64_t max_buffered_bytes = int64_t{512} << 20;
  // What all connections together may hold of answers that clients do not take. More: an answer of
  // more than 16 KiB becomes a 503, and a stream that has as much waiting is cut off.
  int64_t max_queued_bytes = int64_t{256} << 20;
  int64_t min_bytes_per_second = 1024;  // at which a client takes an answer that is whole
  int read_timeout_seconds = 60;        // for a whole request to arrive; also idle keep-alive
  std::shared_ptr<TlsSource> tls;       // null: plain HTTP
  int handshake_timeout_seconds = 10;
  int64_t max_handshakes = 1024;  // in progress; more: the oldest is ended
};

struct HttpRequest {
  std::string method;                                        // "POST"
  std::string path;                                          // "/v1/models", without the query
  std::string query;                                         // without '?', may be empty
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;
  std::string remote_address;
  // The client's x-request-id if it is 1..256 visible ASCII characters, else made here. Every
  // answer carries it.
  std::string id;
  // What the handler knows and the observer will want to; never null in a handler.
  std::shared_ptr<RequestTrace> trace;
  std::chrono::steady_clock::time_point arrival;  // of the whole header
  // The body's share of max_buffered_bytes: given back when the last copy goes. May be null.
  std::shared_ptr<const void> buffer_share;

  // First header of that (lower-case) name, or "".
  std::string_view Header(std::string_view name) const;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// The answer to one request. All methods are thread-safe and never block: bytes are queued to the
// connection's thread. After the client went away they do nothing. Dropping the last reference
// without an answer sends a 500.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  // A whole answer; once, and not after StartStream.
  virtual void Send(int status, std::string_view content_type, std::string body,
                    HttpHeaders headers = {}) = 0;
  // A chunked answer: StartStream once, Write any number of times, EndStream once.
  virtual void StartStream(int status, std::string_view content_type, HttpHeaders headers = {}) = 0;
  virtual void Write(std::string chunk) = 0;
  virtual void EndStream() = 0;
  // Bytes queued and not yet taken by the socket; a producer that sees too many should give up on
  // the client.
  virtual int64_t queued_bytes() const = 0;
  // Called once, from the connection's thread, if the client disconnects before the answer is
  // complete (at once if it already has). A pending read watches for it, also while nothing is
  // written.
  virtual void OnDisconnect(std::function<void()> callback) = 0;
};

// Called on an io thread; must not block for long. May keep `responder` and answer later from any
// thread.
using HttpHandler =
    std::function<void(HttpRequest request, std::shared_ptr<HttpResponder> responder)>;
// One request at its end.
struct HttpOutcome {
  std::string_view route;   // the route's path, "none" where there was none
  std::string_view method;  // "none" where it was not read
  int status = 0;           // 499: the client left before
  double seconds = 0.0;     // since the request's header was there
  std::string_view request_id;
  std::string_view remote_address;
  const RequestTrace* trace = nullptr;  // never null
};
using HttpObserver = std::function<void(const HttpOutcome& outcome)>;
// Looks at every request before its body is read and before its route is looked up: what it returns
// is answered instead, with the server's form of errors.
struct HttpRefusal {
  int status = 0;
  std::string message;
  HttpHeaders headers;
};
using HttpGuard = std::function<std::optional<HttpRefusal>(const HttpRequest& request)>;
// Renders the body of errors that the server itself answers (404, 405, 413, 431, 400, 503):
// {content type, body}.
using HttpErrorBody =
    std::function<std::pair<std::string, std::string>(int status, const std::string& message)>;

class HttpServer {
 public:
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const HttpServerConfig& config);
  // Whether one could listen there now: as Start() answers, for whoever has long work to do before.
  static absl::Status CheckAddress(const std::string& host, int port);
  virtual ~HttpServer() = default;  // Stop()s

  // Before Start only. Exact paths, or all paths below one ("/v1/models/*": those that have no
  // route of their own); one handler per (method, path). Unknown path: 404, unknown method: 405.
  virtual void Handle(std::string method, std::string path, HttpHandler handler) = 0;
  virtual void SetObserver(HttpObserver observer) = 0;
  virtual void SetErrorBody(HttpErrorBody error_body) = 0;
  virtual void SetGuard(HttpGuard guard) = 0;
  // "GET /health", sorted by path.
  virtual std::vector<std::string> Routes() const = 0;

  // Binds and listens; UNAVAILABLE naming address and cause (in use, not permitted). Raises the
  // process's soft limit of open files to the hard one.
  virtual absl::Status Start() = 0;
  virtual int port() const = 0;  // the bound port, after Start
  virtual int64_t num_connections() const = 0;
  virtual int64_t buffered_bytes() const = 0;  // see max_buffered_bytes
  // Answers from now on end their connections, so that clients open the next one elsewhere.
  virtual void EndKeepAlive() = 0;
  // Accepts no more; answers in progress go on; idle connections close.
  virtual void StopAccepting() = 0;
  // Closes everything and joins the threads. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace nibble::server
