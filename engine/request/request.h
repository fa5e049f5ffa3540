// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A request as the engine takes it, and what it hands back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/status.h"
#include "engine/request/sampling_params.h"

namespace nibble::engine {

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0F;
  int32_t rank = 0;  // 1 = most likely
};

// Log probabilities of one generated token.
struct TokenLogprobs {
  TokenLogprob sampled;
  std::vector<TokenLogprob> top;  // SamplingParams::logprobs many, most likely first
};

enum class FinishReason {
  kStop,    // end of sequence, a stop token or a stop string
  kLength,  // max_tokens or the context is full
  kAbort,   // cancelled, or the engine stopped
  kError,   // RequestOutput::error says why
};

// One delta of one sequence. Deltas concatenate to the whole answer; text is complete UTF-8
// characters only.
struct RequestOutput {
  std::string text;  // may be empty while bytes of a character or of a stop string are held back
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs;  // one per token id when asked for, else empty
  // Set on the last delta.
  std::optional<FinishReason> finish_reason;
  // What stopped it, for kStop: the stop string, or the stop token's id; empty for the model's own
  // end of sequence.
  std::variant<std::monostate, std::string, int32_t> stop_reason;
  absl::Status error;  // for kError
  // Totals so far, on every delta.
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache
  int64_t num_generated_tokens = 0;
  double queue_seconds = -1.0;  // from Submit to the first step with it; < 0: no step had it yet
};

// Where a request's deltas go. OnOutput is called from the engine thread, in order, never after the
// delta that carries finish_reason; it must not block and must not call back into the engine
// (except Engine::Cancel, which only queues).
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void OnOutput(RequestOutput output) = 0;
};

using RequestId = uint64_t;

struct EngineRequest {
  std::vector<int32_t>
      prompt_token_ids;              // 1..max_model_len - 1 ids, each below the vocabulary size
  SamplingParams sampling;           // validated by Submit
  int32_t priority = 0;              // lower is served first (vLLM's direction)
  std::shared_ptr<OutputSink> sink;  // kept until the last delta
};

}  // namespace nibble::engine
