// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A small HTTP/1.1 client for nibble's own commands: whole answers, and streams that can be
// cancelled. Blocks; http_streams.h is what does not.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "client/http/client_security.h"
#include "client/http/http_streams.h"
#include "client/http/url.h"

namespace nibble::client {

struct HttpResponse {
  int status = 0;
  std::string body;
};

// One connection per request. Methods may be called from any thread, one at a time.
class HttpClient {
 public:
  using Headers = std::vector<std::pair<std::string, std::string>>;
  explicit HttpClient(Url url, ClientSecurity security = {}, Headers headers = {})
      : url_(std::move(url)), security_(std::move(security)), headers_(std::move(headers)) {}

  // UNAVAILABLE naming the address when nobody answers.
  absl::StatusOr<HttpResponse> Get(std::string_view path) const;
  absl::StatusOr<HttpResponse> Post(std::string_view path, std::string body) const;

  // Posts a JSON body. A 200 answer is handed to `on_data` piece by piece as it arrives and its
  // body stays empty; any other answer is collected in the body. Closes the connection and returns
  // CANCELLED soon (0.1 s) after `cancel` becomes true.
  absl::StatusOr<HttpResponse> PostStream(std::string_view path, std::string body,
                                          const std::function<void(std::string_view)>& on_data,
                                          const std::atomic<bool>& cancel) const;

  const Url& url() const { return url_; }

 private:
  absl::StatusOr<HttpResponse> Exchange(HttpCall call,
                                        const std::function<void(std::string_view)>* on_data,
                                        const std::atomic<bool>* cancel) const;

  Url url_;
  ClientSecurity security_;
  Headers headers_;
};

}  // namespace nibble::client
