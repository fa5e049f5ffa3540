// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "bench/cuda_allreduce_bench.h"
#include "bench/limits.h"
#include "comm/all_reduce.h"

namespace nibble::bench {

void CudaAllReduceBenchOptions::Validate(std::vector<std::string>* violations) const {
  constexpr int64_t kMaxRanks = 8;
  if (ranks != 0) CheckLimits("--ranks", {ranks}, 2, kMaxRanks, violations);
  const std::vector<std::string> transports = {"auto", "p2p", "nccl", "host"};
  if (std::find(transports.begin(), transports.end(), transport) == transports.end()) {
    violations->push_back(
        fmt::format("--transport {}: auto, p2p, nccl or host with --device cuda", transport));
  }
  CheckLimits("--sizes", sizes, 16, int64_t{1} << 30, violations);
  CheckLimits("--row-size", {row_size}, 8, 1 << 16, violations);
  if (row_size % 8 != 0) {
    violations->push_back(fmt::format("--row-size is {}, want a multiple of 8", row_size));
  }
  for (const std::string& name : codecs) {
    const absl::StatusOr<comm::AllReduceOptions> all_reduce = comm::ParseAllReduce(name);
    if (!all_reduce.ok()) {
      violations->emplace_back(all_reduce.status().message());
      continue;
    }
    if (all_reduce->mode == comm::AllReduceOptions::Mode::kAuto) continue;
    if (all_reduce->mode == comm::AllReduceOptions::Mode::kNone ||
        !all_reduce->codec.is_integer()) {
      violations->push_back(fmt::format(
          "--codecs {}: bf16 is measured always; want int8, int6, int5, int4, int3, int2 or auto",
          name));
    }
  }
  const absl::Status codec = comm::Validate(
      {.bits = 4, .group_size = static_cast<int>(std::clamp<int64_t>(group_size, 0, 1 << 20))});
  if (!codec.ok()) violations->emplace_back(codec.message());
  CheckLimits("--calls", {calls}, 1, kMaxCalls, violations);
  CheckNumber("--seconds", meter.seconds, 0.0, 10.0, violations);
}

}  // namespace nibble::bench
