// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Many HTTP/1.1 requests at once on one thread, whose answers are taken as they arrive:
//
//   streams = HttpStreams::Create({.url = url}, &events);
//   streams->Start(id, {.method = "POST", .path = "/v1/completions", .body = body});
//   while (streams->num_active() > 0) streams->Poll(now + 10 ms);   // events are called in here
//
// Connections are kept and used again, unless anything came on them that nobody asked for. A
// request is sent a second time only where the server cannot have taken the first one: a kept
// connection could not be written to, or ended as the request was sent. Everything happens on the
// thread that calls. Boost.Beast and OpenSSL stay behind http_streams.cc because their headers cost
// 20 s per source.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "client/http/client_security.h"
#include "client/http/url.h"

namespace nibble::client {

// Told from within Poll, Start and Cancel; may start and cancel requests.
class HttpEvents {
 public:
  virtual ~HttpEvents() = default;
  virtual void OnHead(uint64_t id, int status) = 0;
  virtual void OnBody(uint64_t id, std::string_view bytes) = 0;
  // Once for each request: OK when the whole answer was there. UNAVAILABLE naming address and
  // cause, DEADLINE_EXCEEDED naming the limit, CANCELLED.
  virtual void OnEnd(uint64_t id, const absl::Status& status) = 0;
};

struct HttpCall {
  std::string_view method;
  std::string path;            // behind the address's own
  std::string body;            // JSON; empty: none
  double timeout_seconds = 0;  // for the whole answer; 0: none
};

struct HttpStreamsOptions {
  Url url;
  ClientSecurity security;
  std::vector<std::pair<std::string, std::string>> headers;  // of every request, instead of ours
  double connect_timeout_seconds = 30;
  // A kept connection that ends within this time of a request being sent ended before the server
  // saw the request, which is sent again.
  double resend_within_seconds = 0.005;
};

class HttpStreams {
 public:
  // Looks the host up and reads the certificates: UNAVAILABLE, INVALID_ARGUMENT naming the file, or
  // the options that do not fit.
  // `events` outlives the result.
  static absl::StatusOr<std::unique_ptr<HttpStreams>> Create(HttpStreamsOptions options,
                                                             HttpEvents* events);
  virtual ~HttpStreams() = default;  // tells nobody about what is still active

  // REQUIRES that `id` is not active.
  virtual void Start(uint64_t id, HttpCall call) = 0;
  // Ends the request with CANCELLED and its connection with it; nothing for one that is not active.
  virtual void Cancel(uint64_t id) = 0;
  virtual void CancelAll() = 0;
  // Handles some of what is there; waits for it until `deadline_ns` of Clock::Monotonic().
  virtual void Poll(int64_t deadline_ns) = 0;
  virtual int64_t num_active() const = 0;

  // How much later than at their deadlines Polls without work in time came back: what waits for
  // this thread waits as long. Those since the last call.
  virtual std::vector<int64_t> TakeWakeDelays() = 0;
  // Requests that were sent a second time since the last call.
  virtual int64_t TakeResends() = 0;
};

}  // namespace nibble::client
