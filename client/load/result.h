// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a run's outcome looks like: JSON with the keys of `vllm bench serve`, and the block that it
// prints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "client/load/runner.h"

namespace nibble::client {

struct LoadOptions;

struct RunDescription {
  std::string date;  // 20261122-180327
  std::string model;
  int64_t num_prompts = 0;
  bool with_details = true;  // every request's own figures as well (see RemoveDetails)
};

nlohmann::ordered_json BuildResult(const LoadOptions& options, const RunDescription& description,
                                   const RunOutcome& outcome);

// Lists with an element for each request that was sent, in the order in which they were planned:
// what --save-detailed adds. Of one that failed or was interrupted ("interrupted" is its error
// then) there are start and end; its other times are 0.
void RemoveDetails(nlohmann::ordered_json* result);

// The block. Rows of what is not in `result` are left out.
std::string FormatBlock(const nlohmann::ordered_json& result);

// What one should know before believing the figures, a line each: the client was slow, the server
// counted no tokens, requests failed.
std::vector<std::string> Warnings(const nlohmann::ordered_json& result);

// Keys that results may have, but those with percentiles.
std::vector<std::string> ResultKeys();

}  // namespace nibble::client
