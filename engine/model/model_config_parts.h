// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Parts of config.json that have a grammar of their own. Faults go to the reader's status.
#pragma once

#include <optional>

#include "engine/model/config_reader.h"
#include "engine/model/model_config.h"

namespace nibble::engine {

// rope_theta and rope_scaling (transformers 4) or rope_parameters (transformers 5).
kernels::RopeConfig ParseRope(ConfigReader* reader, double default_theta, int64_t head_dim);

// What the file says of experts; nullopt for an architecture without them, and when every layer is
// dense. `config` has its architecture and sizes already.
std::optional<MoeConfig> ParseMoe(ConfigReader* reader, const ModelConfig& config);

// quantization_config; nullopt when there is none.
std::optional<QuantizationConfig> ParseQuantization(ConfigReader* reader);
// The same of one method; `reader` is at quantization_config.
void ParseCompressedTensors(ConfigReader* reader, QuantizationConfig* quantization);
// A multiple of 8 in range; a fault otherwise.
int64_t ParseGroupSize(const char* key, ConfigReader* reader);
// A fault unless `key` is absent, null, false or empty: features that nibble does not read.
void ExpectNone(const char* key, ConfigReader* reader);

}  // namespace nibble::engine
