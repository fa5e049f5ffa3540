// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What tells apart two models, and two ways to run one: nodes of a group compare these when they
// join.
#pragma once

#include <string>

#include "base/status.h"
#include "server/config.h"

namespace nibble::cli {

// SHA-256, in hexadecimal, of config.json, the tokenizer's files, and name, type, shape and some
// bytes of every tensor: two checkpoints of one architecture differ in it, and 100 GB take about a
// second. How tensors are spread over files does not matter.
absl::StatusOr<std::string> ModelFingerprint(const std::string& model_dir);

// What all ranks must have alike, as comm::ClusterIdentity wants it: "--tensor-parallel-size=4,
// --pipeline-parallel-size=1, ...".
std::string OptionsFingerprint(const server::ServeConfig& config);

// SHA-256 of `text` in hexadecimal.
std::string Sha256(const std::string& text);

}  // namespace nibble::cli
