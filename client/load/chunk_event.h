// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a load test needs of an event of a stream of the OpenAI API. Read without building a JSON
// tree: there is one for every token of every stream.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::client {

struct ChunkEvent {
  // Something was generated: any choice of a completion, also without text (a special token); of a
  // chat content, reasoning or tool calls. A chunk that only says who speaks is none.
  bool has_tokens = false;
  std::string finish_reason;
  int64_t prompt_tokens = -1;  // of usage; -1: not told
  int64_t completion_tokens = -1;
  bool is_error = false;
  std::string error;
};

// False for what is not JSON. `event` is overwritten.
bool ParseChunkEvent(std::string_view json, bool chat, ChunkEvent* event);

}  // namespace nibble::client
