// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Everything the bytes of an output depend on, by names for people: a run goes on from the layers
// of an earlier one when the descriptions are equal.
#pragma once

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "engine/model/safetensors.h"
#include "quantize/quantize.h"

namespace nibble::quantize {

// The content of weights is taken to change with the size or time of their file.
absl::StatusOr<nlohmann::ordered_json> DescribeRun(const engine::Checkpoint& source,
                                                   const QuantizeOptions& options);

// "none", "self-generated, 128 x 512 tokens, seed 0", "FILE, 128 x 512 tokens"
std::string DescribeCalibration(const QuantizeOptions& options, int64_t length);

}  // namespace nibble::quantize
