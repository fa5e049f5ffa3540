// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What every rank of `nibble bench allreduce --device cuda` does, in a thread of its own, and how
// the ranks are started.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/cuda/device.h"
#include "base/status.h"
#include "bench/cuda_allreduce_bench.h"
#include "comm/gpu/nccl_library.h"

namespace nibble::bench {

// One rank for each of `devices`, which may name one several times: then nothing is a timing.
// `nccl` is what bf16 is compared with, too; an error says why it is not.
absl::StatusOr<nlohmann::ordered_json> RunAllReduceRanks(
    const CudaAllReduceBenchOptions& options, const std::vector<gpu::DeviceCaps>& devices,
    const absl::StatusOr<const comm::NcclLibrary*>& nccl, std::FILE* table);

}  // namespace nibble::bench
