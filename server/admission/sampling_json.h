// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sampling parameters for the request log.
#pragma once

#include <cstdint>
#include <string>

#include "engine/request/sampling_params.h"

namespace nibble::server {

// A JSON object. Of stop strings and biases only how many there are: they are a client's text.
std::string SamplingJson(const engine::SamplingParams& sampling, int64_t n, int32_t priority);

}  // namespace nibble::server
