// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Server-sent events out of a byte stream that is cut anywhere.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace nibble::client {

class SseParser {
 public:
  static constexpr size_t kMaxEventBytes = size_t{4} << 20;  // of a line, and of an event's data

  explicit SseParser(size_t max_event_bytes = kMaxEventBytes) : max_event_bytes_(max_event_bytes) {}

  // Calls `on_data` with the data of each complete event in `bytes` and what came before. Other
  // fields and comments are skipped; the data of several `data:` lines is joined by newlines, as
  // the standard says. False, from then on, once an event is larger than the limit.
  bool Feed(std::string_view bytes, const std::function<void(std::string_view)>& on_data);

  // "an event of more than 4194304 bytes": what such a stream fails with.
  std::string LimitError() const;

 private:
  void TakeLine(const std::function<void(std::string_view)>& on_data);

  size_t max_event_bytes_;
  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool too_large_ = false;
};

}  // namespace nibble::client
