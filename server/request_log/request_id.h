// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Names of requests: the client's own (x-request-id), or one made here.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::server {

inline constexpr std::string_view kRequestIdHeader = "x-request-id";

class RequestIds {
 public:
  RequestIds();
  // 32 hex digits, unique in this process and different from other processes'. Thread-safe.
  std::string Next();
  // `given` if it can be a name (1..256 visible ASCII characters: it is echoed and logged), else
  // Next().
  std::string Choose(std::string_view given);

 private:
  uint64_t base_;
  std::atomic<uint64_t> next_{0};
};

}  // namespace nibble::server
