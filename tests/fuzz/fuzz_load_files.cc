// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a load test reads: files of prompts and traces, and the events of a server's streams. The
// first byte says which.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "client/http/sse_parser.h"
#include "client/load/chunk_event.h"
#include "client/load/dataset_file.h"
#include "client/load/limits.h"

namespace {

using nibble::client::LoadRequest;

void CheckRequests(const absl::StatusOr<std::vector<LoadRequest>>& requests) {
  if (!requests.ok()) return;
  double last = 0;
  for (const LoadRequest& request : *requests) {
    NIBBLE_CHECK_GE(request.output_tokens, 1);
    NIBBLE_CHECK_LE(request.output_tokens, nibble::client::kMaxTokens);
    NIBBLE_CHECK_LE(request.input_tokens, nibble::client::kMaxTokens);
    NIBBLE_CHECK_GE(request.timestamp, last);
    NIBBLE_CHECK(!request.text.empty() || !request.token_ids.empty() || request.input_tokens > 0);
    last = request.timestamp;
  }
}

// Cut in two anywhere, a stream has the same events.
void CheckStream(std::string_view bytes) {
  const auto read = [&](size_t cut) {
    nibble::client::SseParser parser;
    nibble::client::ChunkEvent event;
    std::string seen;
    const auto on_data = [&](std::string_view data) {
      const bool is_json = nibble::client::ParseChunkEvent(data, cut % 2 == 0, &event);
      seen += std::string(data) + (is_json ? "1" : "0");
    };
    parser.Feed(bytes.substr(0, cut), on_data);
    parser.Feed(bytes.substr(cut), on_data);
    return seen;
  };
  NIBBLE_CHECK(read(0) == read(bytes.size() / 2));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0:
      CheckRequests(nibble::client::ParsePromptLines(text, 16));
      break;
    case 1:
      CheckRequests(nibble::client::ParseTimedTrace(text));
      break;
    default:
      CheckStream(text);
  }
  return 0;
}
