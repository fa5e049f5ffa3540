// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Builds without CUDA; bench/cuda is in the others.
#include "nlohmann/json.hpp"

#include "bench/cuda_gemm_bench.h"

namespace nibble::bench {

absl::StatusOr<nlohmann::ordered_json> RunCudaGemmBench(const CudaGemmBenchOptions& /*options*/,
                                                        ThreadPool* /*pool*/,
                                                        std::FILE* /*table*/) {
  return InvalidArgument(
      "--device cuda: this build has no CUDA kernels; build the preset `cuda` (NIBBLE_CUDA=ON)");
}

}  // namespace nibble::bench
