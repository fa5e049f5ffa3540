// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A finished layer as files: its tensors as the output will have them, and its report. A run that
// was killed goes on from these, and the output is put together from them.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "quantize/block.h"
#include "quantize/recipe.h"
#include "quantize/report.h"

namespace nibble::quantize {

// Into `dir`, an empty folder. Routers are the source's bytes. Norms and biases take the type they
// have in `source` where that holds them exactly, else float32.
absl::Status WriteLayer(const std::string& dir, const QuantizedBlock& block,
                        const LayerReport& report, const engine::Checkpoint& source);

absl::StatusOr<LayerReport> ReadLayerReport(const std::string& dir);
// The layer bit by bit as it was written.
absl::StatusOr<QuantizedBlock> ReadLayer(const std::string& dir, const engine::ModelConfig& config,
                                         int64_t layer_idx, Scheme scheme, int64_t group_size,
                                         ThreadPool* pool);

}  // namespace nibble::quantize
