// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From the tensors of a Hugging Face checkpoint to packed weights: names, shapes, fusing,
// quantizing.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/decoder.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"

namespace nibble::engine {

// The share of options.place (shard.h), which CheckSplit accepted, and no more of the
// files is read, but for matrices that are rounded while loading and split by input channels: these
// need whole rows. q, k and v, and gate and up, are fused along their output channels. Of experts,
// those in the rank's slots (options.expert_layout). Besides the packed weights, memory holds one
// such matrix in its stored type and, when quantizing, a slice of rows as floats. A missing tensor
// is NOT_FOUND by name; a wrong shape names the tensor, what was found and what is wanted.
// RESOURCE_EXHAUSTED when the packed weights cannot fit in memory.
absl::StatusOr<DecoderWeights> LoadDecoderWeights(const Checkpoint& checkpoint,
                                                  const ModelConfig& config,
                                                  const LoadOptions& options, ThreadPool* pool);

// What a rank will read, by tensors and shares; within what scales and zero points of slices differ
// by.
int64_t BytesToRead(const Checkpoint& checkpoint, const ModelConfig& config,
                    const LoadOptions& options);

// A lower bound of the packed weights' bytes. A rank checks its own share; ranks of one host, which
// load at the same time from the same memory, are checked together by who starts them. REQUIRES a
// model that splits (CheckSplit).
int64_t LeastWeightBytes(const ModelConfig& config, const LoadOptions& options);

}  // namespace nibble::engine
