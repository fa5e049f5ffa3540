// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/model.h"

#include <new>
#include <utility>

#include "engine/model/decoder.h"
#include "engine/model/safetensors.h"
#include "engine/model/weight_loader.h"

namespace nibble::engine {

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const std::string& dir,
                                                   const LoadOptions& options, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(dir));
  if (const absl::Status split = CheckSplit(config, options.place); !split.ok()) {
    return Annotate(split, dir);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
  try {
    NIBBLE_ASSIGN_OR_RETURN(DecoderWeights weights,
                            LoadDecoderWeights(checkpoint, config, options, pool));
    weights.kv_dtype = options.kv_cache_dtype.value_or(weights.kv_dtype);
    return std::make_unique<DecoderModel>(std::move(config), options.place, std::move(weights),
                                          options.isa);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("{}: memory ran out while loading the weights", dir);
  }
}

}  // namespace nibble::engine
