// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A token on its way from the scheduler to the request's output.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "engine/request/request.h"

namespace nibble::engine {

struct TokenUpdate {
  RequestId id = 0;
  // Without: the model gave no finite logit, and there is no token. finish_reason is kError.
  bool has_token = true;
  int32_t token_id = 0;
  TokenLogprobs logprobs;
  // Set when the sequence ended; the scheduler has forgotten it.
  std::optional<FinishReason> finish_reason;
  bool is_stop_token = false;  // end of sequence or one of stop_token_ids
  // As RequestOutput::stop_reason: the id of a stop token, empty for end of sequence.
  std::variant<std::monostate, std::string, int32_t> stop_reason;
};

}  // namespace nibble::engine
