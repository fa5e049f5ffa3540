// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Requests over the OpenAI API: completions and chats, streamed as server-sent events.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "client/http/http_streams.h"
#include "client/load/server_api.h"
#include "client/load/transport.h"

namespace nibble::client {

// A request's body.
class BodyWriter {
 public:
  // INVALID_ARGUMENT for an extra_body that is no JSON object, or has what the requests' own data
  // say.
  static absl::StatusOr<BodyWriter> Create(const RequestFormat& format);
  std::string Write(const LoadRequest& request) const;

 private:
  bool chat_ = false;
  std::string head_;  // {"model":...,  all but prompt and length
};

// "HTTP 429: the queue is full": what an answer that is not 200 says.
std::string ErrorText(int status, std::string_view body);

// `path` is behind the address's own.
absl::StatusOr<std::unique_ptr<Transport>> MakeHttpTransport(HttpStreamsOptions options,
                                                             std::string path,
                                                             const RequestFormat& format);

}  // namespace nibble::client
