// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a build without the CUDA engine says instead: cuda_engine.cc or no_cuda_engine.cc is linked.
#pragma once

#include <memory>

#include "base/status.h"
#include "engine/model/cuda/cuda_device.h"

namespace nibble::cli {

bool HasCudaEngine();
// Of a build without it: none.
engine::CudaDevices CudaDevices();
// Of a build without it: UNIMPLEMENTED, saying what to build.
absl::StatusOr<std::shared_ptr<const engine::ModelDevice>> OpenCuda(
    const engine::CudaOptions& options);

}  // namespace nibble::cli
