// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One request message out of a connection's bytes: HTTP/1.1's grammar (Beast's parser, which stays
// in the source), the limits of its parts, and what the door to request smuggling would be.
//
//   while (input is left) switch (reader.Read(input, &num_taken)) {
//     case kHead:  guard(reader.request()); continue;   // everything but the body is there
//     case kWhole: route(std::move(reader.request())); ...
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "server/http/http_server.h"

namespace nibble::server {

class RequestReader {
 public:
  // Each costs an entry, a few bytes of the wire or not.
  static constexpr size_t kMaxFields = 128;

  struct Limits {
    int64_t max_header_bytes = 0;
    int64_t max_body_bytes = 0;
  };
  enum class Event { kMore, kHead, kWhole, kRefused };
  struct Refusal {
    int status = 0;
    std::string message;
  };

  explicit RequestReader(const Limits& limits);
  ~RequestReader();

  // Reads on in `input` and adds to *num_taken how many of its bytes are used up. kMore: the rest
  // of `input` has to come again, with more behind it. kHead comes once, before kMore of the body
  // and before kWhole; kRefused and kWhole are the last. What is refused before kHead is no HTTP
  // request; what a good one may not ask of this server (a body of that size, an expectation) is
  // refused after it, so that its sender can be asked for a key first.
  Event Read(std::string_view input, size_t* num_taken);

  const Refusal& refusal() const { return refusal_; }
  // From kHead on; `body` from kWhole on. Id, trace and address are the caller's to fill.
  HttpRequest& request() { return request_; }
  bool has_head() const { return head_done_; }  // whether or not it was refused
  bool has_body() const;                        // there is one, and it is not whole yet
  bool expects_continue() const { return expects_continue_; }
  bool http_1_0() const { return http_1_0_; }
  bool keep_alive() const { return keep_alive_; }

 private:
  struct Parser;

  Event Refuse(int status, std::string message);
  bool HasBareLineFeed(std::string_view input);
  bool CheckHead();  // false: it was refused
  bool CheckBody();  // likewise, by what the head says of it

  const Limits limits_;
  const std::unique_ptr<Parser> parser_;
  HttpRequest request_;
  Refusal refusal_;
  size_t num_bytes_checked_ = 0;  // of a head that is not whole, for their line ends
  bool head_done_ = false;
  bool body_checked_ = false;
  bool expects_continue_ = false;
  bool http_1_0_ = false;
  bool keep_alive_ = false;
};

}  // namespace nibble::server
