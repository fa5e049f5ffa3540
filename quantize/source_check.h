// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Everything that can be wrong with the source's names, types and shapes is found before anything
// is written.
#pragma once

#include <string>

#include "base/status.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "quantize/quantize.h"

namespace nibble::quantize {

// NOT_FOUND or INVALID_ARGUMENT naming the tensor at fault.
absl::Status CheckSource(const engine::Checkpoint& checkpoint, const engine::ModelConfig& config,
                         const QuantizeOptions& options);

// INVALID_ARGUMENT for an output folder that holds the source or has no name.
absl::Status CheckFolders(const std::string& source, const std::string& output);

}  // namespace nibble::quantize
