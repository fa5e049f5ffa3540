// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What `nibble bench serve` can be told. Names are those of `vllm bench serve` where it has the
// option.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "client/http/client_security.h"
#include "client/http/http_streams.h"
#include "client/load/arrival.h"
#include "client/load/dataset.h"
#include "client/load/server_api.h"
#include "client/load/statistics.h"

namespace nibble::client {

struct LoadOptions {
  std::string url = "http://127.0.0.1:8000";
  std::string grpc;                // HOST:PORT; then not `url`
  bool grpc_tls = false;           // also with any option of TLS
  std::string backend = "openai";  // openai (completions), openai-chat
  std::string endpoint;            // empty: the backend's
  ClientSecurity security;
  std::vector<std::string> headers;  // NAME=VALUE, of every request
  std::string model;                 // empty: the first one the server lists
  std::string tokenizer;             // model directory; empty: the server is asked
  SamplingOptions sampling;
  std::string extra_body;
  bool ignore_eos = false;
  DatasetOptions dataset;
  ArrivalOptions arrival;
  bool self_timed = true;       // a trace's times count, not those of `arrival`
  int64_t max_concurrency = 0;  // 0: no limit
  int64_t num_warmups = 0;
  double ready_check_timeout_seconds = 0;  // 0: the server is there, or it is an error
  double request_timeout_seconds = 6 * 3600;
  std::vector<std::string> goodput;  // ttft:MS, tpot:MS, e2el:MS
  std::string percentile_metrics = "ttft,tpot,itl,e2el";
  std::vector<double> metric_percentiles = {99};
  std::vector<std::string> metadata;  // KEY=VALUE
  std::string label;

  // INVALID_ARGUMENT with a line for each violation.
  absl::Status Validate() const;

  bool chat() const { return backend == "openai-chat"; }
  std::string path() const;          // of HTTP requests
  std::string backend_name() const;  // of results: which of APIs and transports
  // Lengths that were asked for are meant, not where a model would end.
  bool ignores_eos() const;
  bool follows_trace() const { return dataset.is_trace() && self_timed; }
};

// Of options that are valid.
Goodput ParseGoodput(const LoadOptions& options);
std::vector<std::string> ParsePercentileMetrics(const LoadOptions& options);
std::vector<std::pair<std::string, std::string>> ParsePairs(const std::vector<std::string>& pairs);
absl::StatusOr<HttpStreamsOptions> ParseHttp(const LoadOptions& options);

}  // namespace nibble::client
