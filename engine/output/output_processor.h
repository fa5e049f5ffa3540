// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Turns one sequence's tokens into RequestOutput deltas: incremental detokenization, stop strings,
// logprobs, totals.
//
// Text that may be the beginning of a stop string is held back, so that concatenated deltas are the
// answer and nothing of a stop string leaks. Both ends of a match are character boundaries because
// stop strings are valid UTF-8 (SamplingParams::Validate).
//
// min_tokens: a stop string counts when it ends in the text of a later token than the first
// min_tokens. The text of a token that ended the sequence (end of sequence, stop_token_ids) belongs
// to the answer only with include_stop_str_in_output; its id always does.
//
// Not thread-safe. The tokenizer must outlive it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/output/stop_matcher.h"
#include "engine/request/request.h"
#include "engine/scheduler/token_update.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::engine {

class OutputProcessor {
 public:
  OutputProcessor(const Tokenizer* tokenizer, const SamplingParams& sampling,
                  std::span<const int32_t> prompt_token_ids);

  void set_num_cached_tokens(int64_t count) { num_cached_tokens_ = count; }
  void set_queue_seconds(double seconds) { queue_seconds_ = seconds; }
  int64_t num_generated_tokens() const { return num_generated_tokens_; }

  // The delta of one token. It carries a finish_reason when the token ended the sequence, or when
  // its text completed a stop string; REQUIRES that no delta did before.
  RequestOutput Append(TokenUpdate update);

  // The last delta of a sequence that ended without a token (cancelled, failed); releases the text
  // that was held back.
  RequestOutput Finish(FinishReason reason, absl::Status error);

 private:
  RequestOutput NewOutput() const;
  // Reads more text; true when it completed a stop string and `output` is the last delta.
  bool ReadText(const std::string& text, bool may_match, RequestOutput* output);

  IncrementalDecoder decoder_;
  StopMatcher stop_matcher_;
  std::vector<std::string> stop_;
  bool include_stop_str_in_output_;
  bool wants_logprobs_;
  int64_t min_tokens_;
  int64_t num_prompt_tokens_;
  int64_t num_cached_tokens_ = 0;
  double queue_seconds_ = -1.0;
  int64_t num_generated_tokens_ = 0;
  std::string held_;           // decoded, not sent
  size_t num_sent_bytes_ = 0;  // offset of held_ in the whole text
};

}  // namespace nibble::engine
