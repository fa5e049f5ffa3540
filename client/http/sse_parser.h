// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Server-sent events out of a byte stream that is cut anywhere.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace nibble::client {

class SseParser {
 public:
  // Calls `on_data` with the data of each complete event in `bytes` and what came before. Other
  // fields and comments are skipped; the data of several `data:` lines is joined by newlines, as
  // the standard says.
  void Feed(std::string_view bytes, const std::function<void(std::string_view)>& on_data);

 private:
  std::string line_;
  std::string data_;
  bool has_data_ = false;
};

}  // namespace nibble::client
