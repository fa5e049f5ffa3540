// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/cuda_engine.h"

namespace nibble::cli {

bool HasCudaEngine() { return false; }

engine::CudaDevices CudaDevices() {
  return {.usable = {}, .why_none = "this build has no CUDA engine"};
}

absl::StatusOr<std::shared_ptr<const engine::ModelDevice>> OpenCuda(
    const engine::CudaOptions& /*options*/) {
  return Unimplemented("this build has no CUDA engine");
}

}  // namespace nibble::cli
