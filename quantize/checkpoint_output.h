// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Puts the output together: finished layers, and everything else as the source has it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "quantize/recipe.h"
#include "quantize/work_folder.h"

namespace nibble::quantize {

struct CheckpointOutput {
  Scheme scheme = Scheme::kW4A8;
  int64_t group_size = 128;
  int64_t max_shard_bytes = int64_t{5} << 30;
};

// Writes tensors, config.json, and what else of the source belongs to a model directory to `dir`,
// an empty folder. REQUIRES: all layers are finished. `progress` (may be null) gets bytes done and
// in all. Returns the bytes of the tensors.
absl::StatusOr<int64_t> WriteCheckpoint(const std::string& dir, const engine::Checkpoint& source,
                                        const engine::ModelConfig& config, const WorkFolder& work,
                                        const CheckpointOutput& output,
                                        const std::function<void(int64_t, int64_t)>& progress);

// config.json of the source with a quantization_config.
absl::StatusOr<std::string> QuantizedConfig(const std::string& source,
                                            const engine::ModelConfig& config,
                                            const CheckpointOutput& output);

}  // namespace nibble::quantize
