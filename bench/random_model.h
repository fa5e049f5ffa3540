// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A model of a well-known shape with random weights, made in memory: nothing is read or written, so
// that a machine without disk or Python can measure it.
#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model.h"

namespace nibble::bench {

// "random:llama-3-8b" -> "llama-3-8b"; none: not such a name.
std::optional<std::string_view> RandomShapeOf(std::string_view model);

// llama-3.2-1b, llama-3.2-3b, llama-3-8b, llama-3-70b, mixtral-8x7b, and for tests tiny and
// tiny-mixtral. INVALID_ARGUMENT names the shapes there are.
absl::StatusOr<engine::ModelConfig> RandomModelConfig(std::string_view shape);

// On one rank. All layers have the same values, each in memory of its own: random codes of W4A8
// (folded, groups of 128), W8A8 or W4A16, or random bfloat16 in load.dtype, as load.quantization
// says; the head as load.head_quantization says. Routers differ from layer to layer.
// RESOURCE_EXHAUSTED where host or device have no room for the weights.
absl::StatusOr<std::unique_ptr<engine::Model>> MakeRandomModel(const engine::ModelConfig& config,
                                                               engine::LoadOptions load,
                                                               ThreadPool* pool);

}  // namespace nibble::bench
