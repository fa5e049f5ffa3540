// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/sse_parser.h"

namespace nibble::client {

bool SseParser::Feed(std::string_view bytes, const std::function<void(std::string_view)>& on_data) {
  while (!too_large_) {
    const size_t newline = bytes.find('\n');
    const std::string_view piece = bytes.substr(0, newline);
    if (line_.size() + piece.size() > max_event_bytes_) {
      too_large_ = true;
      break;
    }
    line_.append(piece);
    if (newline == std::string_view::npos) break;
    bytes.remove_prefix(newline + 1);
    TakeLine(on_data);
  }
  return !too_large_;
}

void SseParser::TakeLine(const std::function<void(std::string_view)>& on_data) {
  if (!line_.empty() && line_.back() == '\r') line_.pop_back();
  if (line_.empty()) {
    if (has_data_) on_data(data_);
    data_.clear();
    has_data_ = false;
  } else if (std::string_view(line_).starts_with("data:")) {
    std::string_view value = std::string_view(line_).substr(5);
    if (value.starts_with(' ')) value.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_.append(value);
    has_data_ = true;
    too_large_ = data_.size() > max_event_bytes_;
  }
  line_.clear();
}

std::string SseParser::LimitError() const {
  return "an event of more than " + std::to_string(max_event_bytes_) + " bytes";
}

}  // namespace nibble::client
