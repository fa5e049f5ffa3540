// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What computes a model other than this host's CPUs: engine/model/cuda has one.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "engine/model/decoder.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "kernels/gemm/weight_packer.h"

namespace nibble::engine {

// Model::Load asks it in this order. One process may load several models (ranks) for one device.
class ModelDevice {
 public:
  virtual ~ModelDevice() = default;

  // `options` with what they leave open, or hold in a type that the device does not compute in.
  // UNIMPLEMENTED, naming option or field and what to do, for what the device does not have.
  virtual absl::StatusOr<LoadOptions> Adapt(const ModelConfig& config,
                                            LoadOptions options) const = 0;
  // As CheckMemory (memory.h), of the device's memory.
  virtual absl::Status CheckMemory(int64_t bytes, std::string_view what) const = 0;
  // Weights are packed and moved to the device one matrix at a time.
  virtual const kernels::WeightPacker& packer() const = 0;
  // `weights` are of packer().
  virtual absl::StatusOr<std::unique_ptr<Model>> MakeModel(ModelConfig config,
                                                           DecoderWeights weights,
                                                           const LoadOptions& options) const = 0;
};

}  // namespace nibble::engine
