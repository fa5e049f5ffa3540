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

// Cut in two anywhere, a stream has the same events, and is too large at the same place.
void CheckCuts(std::string_view bytes, size_t max_event_bytes) {
  constexpr size_t kAllCuts = 256;  // of what is not larger
  const auto read = [&](size_t cut) {
    nibble::client::SseParser parser(max_event_bytes);
    std::string seen;
    const auto on_data = [&](std::string_view data) {
      NIBBLE_CHECK_LE(data.size(), max_event_bytes);
      seen += std::to_string(data.size()) + ":" + std::string(data);
    };
    parser.Feed(bytes.substr(0, cut), on_data);
    if (!parser.Feed(bytes.substr(cut), on_data)) seen += "!";
    return seen;
  };
  const std::string whole = read(0);
  const size_t step = bytes.size() <= kAllCuts ? 1 : bytes.size() / 2;
  for (size_t cut = 1; cut <= bytes.size(); cut += step) NIBBLE_CHECK(read(cut) == whole);
}

void CheckStream(std::string_view bytes) {
  nibble::client::ChunkEvent event;
  nibble::client::SseParser parser;
  parser.Feed(bytes, [&](std::string_view data) {
    for (const bool chat : {false, true}) nibble::client::ParseChunkEvent(data, chat, &event);
  });
  CheckCuts(bytes, nibble::client::SseParser::kMaxEventBytes);
  CheckCuts(bytes, 16);
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
