// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/cuda_engine.h"

namespace nibble::cli {

bool HasCudaEngine() { return true; }

engine::CudaDevices CudaDevices() { return engine::ListCudaDevices(); }

absl::StatusOr<std::shared_ptr<const engine::ModelDevice>> OpenCuda(
    const engine::CudaOptions& options) {
  return engine::OpenCudaDevice(options);
}

}  // namespace nibble::cli
