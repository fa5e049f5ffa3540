// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A small HTTP/1.1 client for nibble's own commands: whole answers and streams that can be
// cancelled. Boost.Beast stays behind http_client.cc because its headers cost 20 s per source.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::client {

struct HttpResponse {
  int status = 0;
  std::string body;
};

// An address such as http://127.0.0.1:8000, perhaps with a path in front of the API's.
struct Url {
  std::string host;
  std::string port;
  std::string prefix;  // "" or "/path" without a slash at the end

  // INVALID_ARGUMENT naming the text for anything but http://HOST[:PORT][/PATH].
  static absl::StatusOr<Url> Parse(std::string_view text);
};

// One connection per request. Methods may be called from any thread, one at a time.
class HttpClient {
 public:
  explicit HttpClient(Url url) : url_(std::move(url)) {}

  // UNAVAILABLE naming the address when nobody answers.
  absl::StatusOr<HttpResponse> Get(std::string_view path) const;

  // Posts a JSON body. A 200 answer is handed to `on_data` piece by piece as it arrives and its
  // body stays empty; any other answer is collected in the body. Closes the connection and returns
  // CANCELLED soon (0.1 s) after `cancel` becomes true.
  absl::StatusOr<HttpResponse> PostStream(std::string_view path, std::string body,
                                          const std::function<void(std::string_view)>& on_data,
                                          const std::atomic<bool>& cancel) const;

 private:
  Url url_;
};

}  // namespace nibble::client
