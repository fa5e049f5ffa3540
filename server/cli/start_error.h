// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Why a server cannot start, for the operator who started it: one block of plain lines.
//
//   nibble: error: the KV cache does not fit
//     needed: 4.19 MB, for one sequence of --max-model-len 2048 tokens
//     there is: 1.00 MB, as --kv-cache-memory-bytes says
//     try: --max-model-len 496 or less
//     try: --kv-cache-memory-bytes 4194304 or more
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "server/config.h"

namespace nibble::cli {

struct StartError {
  std::string what;                   // happened
  std::string needed;                 // the value
  std::string there_is;               // the limit
  std::vector<std::string> remedies;  // that would do, the likeliest first

  absl::Status ToStatus(absl::StatusCode code) const;
};

// The --gpu-memory-utilization, in hundredths, that gives a device `missing_bytes` more than the
// `present` one does; 0: no allowed one does.
double EnoughUtilization(double present, int64_t missing_bytes, int64_t total_bytes);

// A port that cannot be listened on: `cause` is that of HttpServer::Start or GrpcServer::Start.
absl::Status CannotListen(std::string_view option, const std::string& host, int port,
                          const absl::Status& cause);

// OK when `dir` holds what a server reads: config.json, all weights and a tokenizer. NOT_FOUND
// listing what is missing. What is in the files is checked by who reads them.
absl::Status CheckModelFiles(const std::string& dir);

// OK when the weights of all ranks of this host, each given by its place, fit into
// `available_bytes` of memory that they share. RESOURCE_EXHAUSTED telling which quantization, if
// any, would fit.
absl::Status CheckWeightsFit(const engine::ModelConfig& model,
                             const std::vector<engine::LoadOptions>& ranks,
                             int64_t available_bytes);

}  // namespace nibble::cli
