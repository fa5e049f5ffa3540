// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What becomes known of one request on its way through the server, for the request log: front ends
// make a trace, the native path writes into it from whichever thread knows.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace nibble::server {

class RequestTrace {
 public:
  struct Facts {
    std::string model;     // empty: the request is about none
    std::string sampling;  // a JSON object; empty: nothing is sampled
    bool stream = false;
    int64_t num_choices = 0;        // 0: refused before its prompt was read
    int64_t num_prompt_tokens = 0;  // over all prompts
    int64_t num_cached_tokens = 0;
    int64_t num_output_tokens = 0;              // of choices that ended
    std::vector<std::string> finish_reasons;    // of choices that ended, in that order
    std::optional<double> queue_seconds;        // the longest of its choices
    std::optional<double> first_token_seconds;  // since begin()
    // Only where texts are to be logged:
    std::string prompt;
    std::string output;  // of all choices, as the deltas came
  };

  // When the request was there: where its times begin.
  std::chrono::steady_clock::time_point begin() const { return begin_; }

  template <typename Function>
  void Edit(const Function& function) {
    const std::lock_guard lock(mutex_);
    function(&facts_);
  }
  Facts facts() const {
    const std::lock_guard lock(mutex_);
    return facts_;
  }

 private:
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  mutable std::mutex mutex_;
  Facts facts_;  // guarded by mutex_
};

}  // namespace nibble::server
