// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A small HTTP/1.1 client for nibble's own commands: whole answers, and streams that can be
// cancelled. Blocks; http_streams.h is what does not.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
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

// Its connection is kept for the next request. Methods may be called from any thread, one at a
// time.
class HttpClient {
 public:
  using Headers = std::vector<std::pair<std::string, std::string>>;
  explicit HttpClient(Url url, ClientSecurity security = {}, Headers headers = {});
  HttpClient(HttpClient&& other) noexcept;
  ~HttpClient();

  // Every request ends with CANCELLED soon (0.1 s) after `cancel` becomes true. Null: none does.
  void SetCancel(const std::atomic<bool>* cancel) { cancel_ = cancel; }

  // UNAVAILABLE naming the address when nobody answers, DEADLINE_EXCEEDED when nobody does in time.
  absl::StatusOr<HttpResponse> Get(std::string_view path);
  absl::StatusOr<HttpResponse> Post(std::string_view path, std::string body);

  // Posts a JSON body. A 200 answer is handed to `on_data` piece by piece as it arrives and its
  // body stays empty; any other answer is collected in the body. Closes the connection and returns
  // CANCELLED once `on_data` has returned false, or soon after `cancel` becomes true.
  absl::StatusOr<HttpResponse> PostStream(std::string_view path, std::string body,
                                          const std::function<bool(std::string_view)>& on_data,
                                          const std::atomic<bool>& cancel);

  const Url& url() const { return url_; }

 private:
  class Answer;
  absl::StatusOr<HttpResponse> Exchange(HttpCall call,
                                        const std::function<bool(std::string_view)>* on_data,
                                        const std::atomic<bool>* cancel);

  Url url_;
  ClientSecurity security_;
  Headers headers_;
  const std::atomic<bool>* cancel_ = nullptr;
  std::unique_ptr<Answer> answer_;  // of streams_
  std::unique_ptr<HttpStreams> streams_;
};

}  // namespace nibble::client
