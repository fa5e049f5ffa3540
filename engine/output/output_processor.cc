// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/output/output_processor.h"

#include <utility>

namespace nibble::engine {

OutputProcessor::OutputProcessor(const Tokenizer* tokenizer, const SamplingParams& sampling,
                                 std::span<const int32_t> prompt_token_ids)
    : decoder_(tokenizer, sampling.skip_special_tokens, prompt_token_ids),
      stop_matcher_(sampling.stop),
      stop_(sampling.stop),
      include_stop_str_in_output_(sampling.include_stop_str_in_output),
      wants_logprobs_(sampling.logprobs >= 0),
      min_tokens_(sampling.min_tokens),
      num_prompt_tokens_(static_cast<int64_t>(prompt_token_ids.size())) {}

RequestOutput OutputProcessor::NewOutput() const {
  RequestOutput output;
  output.num_prompt_tokens = num_prompt_tokens_;
  output.num_cached_tokens = num_cached_tokens_;
  output.num_generated_tokens = num_generated_tokens_;
  output.queue_seconds = queue_seconds_;
  return output;
}

RequestOutput OutputProcessor::Append(TokenUpdate update) {
  ++num_generated_tokens_;
  RequestOutput output = NewOutput();
  output.token_ids = {update.token_id};
  if (wants_logprobs_) output.logprobs.push_back(std::move(update.logprobs));

  const bool may_match = num_generated_tokens_ > min_tokens_;
  if (!update.is_stop_token || include_stop_str_in_output_) {
    if (ReadText(decoder_.Append(update.token_id), may_match, &output)) return output;
  }
  if (update.finish_reason) {
    if (ReadText(decoder_.Flush(), may_match, &output)) return output;
    output.text += std::exchange(held_, {});
    output.finish_reason = update.finish_reason;
    output.stop_reason = std::move(update.stop_reason);
    return output;
  }
  const size_t num_certain = held_.size() - stop_matcher_.num_held_bytes();
  output.text = held_.substr(0, num_certain);
  held_.erase(0, num_certain);
  num_sent_bytes_ += num_certain;
  return output;
}

bool OutputProcessor::ReadText(const std::string& text, bool may_match, RequestOutput* output) {
  held_ += text;
  const auto match = stop_matcher_.Append(text, may_match);
  if (!match) return false;
  const std::string& stop = stop_[match->stop_idx];
  output->text = held_.substr(0, match->begin - num_sent_bytes_);
  if (include_stop_str_in_output_) output->text += stop;
  held_.clear();
  output->finish_reason = FinishReason::kStop;
  output->stop_reason = stop;
  return true;
}

RequestOutput OutputProcessor::Finish(FinishReason reason, absl::Status error) {
  RequestOutput output = NewOutput();
  output.text = std::exchange(held_, {}) + decoder_.Flush();
  output.finish_reason = reason;
  output.error = std::move(error);
  return output;
}

}  // namespace nibble::engine
