// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/cuda/device.h"
#include "bench/cuda/allreduce_rank.h"
#include "bench/cuda_allreduce_bench.h"

namespace nibble::bench {
namespace {

constexpr int64_t kMaxRanks = 8;

absl::StatusOr<std::vector<gpu::DeviceCaps>> ChooseDevices(
    const CudaAllReduceBenchOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<gpu::DeviceCaps> devices, gpu::ListDevices());
  if (devices.empty()) {
    return Unavailable("--device cuda: no CUDA device: {}", gpu::WhyNoDevice());
  }
  if (options.ranks_on_one_device > 0) {
    // Blocks of all ranks wait for each other, so all must be there at the same time.
    gpu::DeviceCaps part = devices.front();
    part.num_sms = std::max(1, part.num_sms / static_cast<int>(options.ranks_on_one_device));
    return std::vector<gpu::DeviceCaps>(static_cast<size_t>(options.ranks_on_one_device), part);
  }
  const auto num_devices = static_cast<int64_t>(devices.size());
  if (num_devices < 2) {
    return absl::FailedPreconditionError(
        fmt::format("--device cuda: an all-reduce is timed between devices: at least 2 are needed, "
                    "this host has 1, {} (ranks that share a device are a test and never a timing)",
                    devices.front().name));
  }
  if (options.ranks > num_devices) {
    return absl::FailedPreconditionError(fmt::format(
        "--ranks is {}, the CUDA devices of this host are {}", options.ranks, num_devices));
  }
  const int64_t num_ranks = options.ranks > 0 ? options.ranks : std::min(num_devices, kMaxRanks);
  devices.resize(static_cast<size_t>(num_ranks));
  return devices;
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunCudaAllReduceBench(
    const CudaAllReduceBenchOptions& options, std::FILE* table) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<gpu::DeviceCaps> devices, ChooseDevices(options));
  absl::StatusOr<const comm::NcclLibrary*> nccl = Unavailable("NCCL wants a device for each rank");
  if (options.ranks_on_one_device == 0) nccl = comm::NcclLibrary::Get();
  return RunAllReduceRanks(options, devices, nccl, table);
}

}  // namespace nibble::bench
