// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Builds without CUDA; bench/cuda is in the others.
#include "nlohmann/json.hpp"

#include "bench/cuda_allreduce_bench.h"
#include "bench/cuda_attention_bench.h"
#include "bench/cuda_codec_bench.h"
#include "bench/cuda_gemm_bench.h"
#include "bench/device_probe.h"

namespace nibble::bench {
namespace {

absl::Status NoCuda() {
  return InvalidArgument(
      "--device cuda: this build has no CUDA kernels; build the preset `cuda` (NIBBLE_CUDA=ON)");
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunCudaGemmBench(const CudaGemmBenchOptions& /*options*/,
                                                        ThreadPool* /*pool*/,
                                                        std::FILE* /*table*/) {
  return NoCuda();
}

absl::StatusOr<nlohmann::ordered_json> RunCudaAttentionBench(
    const CudaAttentionBenchOptions& /*options*/, std::FILE* /*table*/) {
  return NoCuda();
}

absl::StatusOr<nlohmann::ordered_json> RunCudaCodecBench(const CudaCodecBenchOptions& /*options*/,
                                                         std::FILE* /*table*/) {
  return NoCuda();
}

absl::StatusOr<nlohmann::ordered_json> RunCudaAllReduceBench(
    const CudaAllReduceBenchOptions& /*options*/, std::FILE* /*table*/) {
  return NoCuda();
}

absl::StatusOr<std::unique_ptr<DeviceProbe>> OpenDeviceProbe(int /*index*/,
                                                             const MeterOptions& /*options*/) {
  return NoCuda();
}

}  // namespace nibble::bench
