// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the records of a run amount to, as `vllm bench serve` defines it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "client/load/request.h"

namespace nibble::client {

struct Summary {  // all 0 for no values
  double mean = 0;
  double median = 0;
  double stddev = 0;                                   // of the values, not of a sample
  std::vector<std::pair<double, double>> percentiles;  // 99 -> value
};

// Between two values percentiles are interpolated linearly.
Summary Summarize(std::vector<double> values, const std::vector<double>& percentiles);

// Limits in ms that a good request keeps; a request of one token has no tpot and keeps it.
struct Goodput {
  std::map<std::string, double> limits;  // of ttft, tpot, e2el
};

// Failed requests count in num_failed and `errors` alone.
struct LoadMetrics {
  int64_t num_completed = 0;
  int64_t num_failed = 0;
  int64_t num_interrupted = 0;
  int64_t num_good = 0;
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
  int64_t num_without_usage = 0;       // whose tokens are counted by chunks
  double max_output_tokens_per_s = 0;  // of whole seconds since the first request
  int64_t max_concurrent_requests = 0;
  // Seconds.
  Summary ttft;
  Summary tpot;        // (latency - ttft) / (tokens - 1), of each request with two tokens or more
  Summary itl;         // gaps between chunks, of all requests together
  Summary e2el;        // up to the last token
  Summary queue_time;  // a place was not free
  Summary e2el_with_queue;
  Summary send_delay;  // sent later than planned
  double max_send_delay = 0;
  // Most frequent first: an error's first words and how many there were. Numbers in them do not
  // tell errors apart.
  std::vector<std::pair<std::string, int64_t>> errors;
};

// Tokens of a request's prompt: by usage, else as many as it was made of.
int64_t InputTokens(const RequestRecord& record);
// Tokens that a completed request was answered with: by usage, else its chunks.
int64_t OutputTokens(const RequestRecord& record);
// Seconds between the chunks of a request.
std::vector<double> Gaps(const RequestRecord& record);

LoadMetrics ComputeMetrics(const std::vector<RequestRecord>& records,
                           const std::vector<double>& percentiles, const Goodput& goodput);

}  // namespace nibble::client
