// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/request/sampling_params.h"

#include "absl/container/flat_hash_set.h"

#include "base/utf8.h"
#include "engine/request/violations.h"

namespace nibble::engine {
namespace {

void CheckPositiveUpTo(const char* field, float value, float high, Violations* violations) {
  if (!(value > 0.0F && value <= high)) {  // as CheckRange: NaN is outside
    violations->Add("{} is {}, must be in (0, {}]", field, value, high);
  }
}

// A list's elements share one entry: the first that is wrong, and how many more are.
class FirstOfMany {
 public:
  template <typename... Args>
  void Add(fmt::format_string<Args...> format, Args&&... args) {
    if (count_++ == 0) first_ = fmt::format(format, std::forward<Args>(args)...);
  }
  void AddTo(Violations* violations) const {
    if (count_ == 1) violations->Add("{}", first_);
    if (count_ > 1) violations->Add("{} (and {} more like it)", first_, count_ - 1);
  }

 private:
  std::string first_;
  int64_t count_ = 0;
};

// False, after reporting, for a list whose elements are not worth looking at.
bool CheckCount(const char* field, size_t count, int limit, Violations* violations) {
  if (count <= static_cast<size_t>(limit)) return true;
  violations->Add("{} has {} entries, the limit is {}", field, count, limit);
  return false;
}

void CheckStopStrings(const std::vector<std::string>& stop, const SamplingLimits& limits,
                      Violations* violations) {
  if (!CheckCount("stop", stop.size(), limits.max_stop_strings, violations)) return;
  FirstOfMany empty;
  FirstOfMany long_strings;
  FirstOfMany invalid;
  for (size_t i = 0; i < stop.size(); ++i) {
    if (stop[i].empty()) empty.Add("stop[{}] is empty, must have at least 1 byte", i);
    if (stop[i].size() > static_cast<size_t>(limits.max_stop_bytes)) {
      long_strings.Add("stop[{}] has {} bytes, the limit is {}", i, stop[i].size(),
                       limits.max_stop_bytes);
    } else if (!IsValidUtf8(stop[i])) {
      invalid.Add("stop[{}] is not valid UTF-8", i);
    }
  }
  empty.AddTo(violations);
  long_strings.AddTo(violations);
  invalid.AddTo(violations);
}

void CheckStopTokens(const std::vector<int32_t>& ids, const SamplingLimits& limits,
                     Violations* violations) {
  if (!CheckCount("stop_token_ids", ids.size(), limits.max_stop_token_ids, violations)) return;
  FirstOfMany outside;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= limits.vocab_size) {
      outside.Add("stop_token_ids[{}] is {}, must be in [0, {})", i, ids[i], limits.vocab_size);
    }
  }
  outside.AddTo(violations);
}

void CheckLogitBias(const std::vector<std::pair<int32_t, float>>& bias,
                    const SamplingLimits& limits, Violations* violations) {
  if (!CheckCount("logit_bias", bias.size(), limits.max_logit_bias, violations)) return;
  FirstOfMany outside;
  FirstOfMany repeated;
  FirstOfMany bad_values;
  absl::flat_hash_set<int32_t> seen;
  for (const auto& [id, value] : bias) {
    if (id < 0 || id >= limits.vocab_size) {
      outside.Add("logit_bias token id is {}, must be in [0, {})", id, limits.vocab_size);
    }
    if (!seen.insert(id).second) repeated.Add("logit_bias names token id {} twice", id);
    if (!(value >= -100.0F && value <= 100.0F)) {
      bad_values.Add("logit_bias of token id {} is {}, must be in [-100, 100]", id, value);
    }
  }
  outside.AddTo(violations);
  repeated.AddTo(violations);
  bad_values.AddTo(violations);
}

}  // namespace

absl::Status SamplingParams::Validate(const SamplingLimits& limits) const {
  Violations violations;
  if (max_tokens != kFillContext && (max_tokens < 1 || max_tokens > limits.max_model_len)) {
    violations.Add("max_tokens is {}, must be in [1, {}]", max_tokens, limits.max_model_len);
  }
  if (min_tokens < 0 || min_tokens > max_tokens) {
    if (max_tokens == kFillContext) {
      violations.Add("min_tokens is {}, must be at least 0", min_tokens);
    } else {
      violations.Add("min_tokens is {}, must be in [0, max_tokens = {}]", min_tokens, max_tokens);
    }
  }
  violations.CheckRange("temperature", temperature, 0.0F, 2.0F);
  CheckPositiveUpTo("top_p", top_p, 1.0F, &violations);
  if (top_k < 0) violations.Add("top_k is {}, must be at least 0", top_k);
  violations.CheckRange("min_p", min_p, 0.0F, 1.0F);
  CheckPositiveUpTo("repetition_penalty", repetition_penalty, 2.0F, &violations);
  violations.CheckRange("presence_penalty", presence_penalty, -2.0F, 2.0F);
  violations.CheckRange("frequency_penalty", frequency_penalty, -2.0F, 2.0F);
  if (logprobs < -1 || logprobs > limits.max_logprobs) {
    violations.Add("logprobs is {}, must be in [-1, {}]", logprobs, limits.max_logprobs);
  }
  CheckStopStrings(stop, limits, &violations);
  CheckStopTokens(stop_token_ids, limits, &violations);
  CheckLogitBias(logit_bias, limits, &violations);
  return violations.ToStatus();
}

}  // namespace nibble::engine
