// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A model in shares whose ranks are threads of this process: for evaluation, not for serving.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/group.h"
#include "comm/stage_link.h"
#include "engine/exec/perplexity.h"
#include "engine/model/model.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/cli/model_setup.h"
#include "server/config.h"

namespace nibble::cli {

// Before CUDA's first call and any other thread, where ranks on several devices are threads: has
// CUDA load all kernels as soon as it starts, unless the environment says otherwise. One that is
// loaded at its first launch may wait, with a lock of the process held, for a kernel that runs; and
// that kernel may wait for another rank's, which is behind the lock.
void LoadKernelsAtStart();

struct ThreadRanks {
  DeviceChoice device;
  std::unique_ptr<engine::Tokenizer> tokenizer;
  std::vector<std::unique_ptr<ThreadPool>> pools;  // by world rank, as all that follows
  std::vector<std::unique_ptr<engine::Model>> models;
  std::vector<std::unique_ptr<comm::Communicator>> group;  // of the rank's stage
  std::vector<std::unique_ptr<comm::StageLink>> links;     // none with one stage

  std::vector<engine::PerplexityRank> Places() const;
};

// Loads the shares one after the other, showing progress on standard error; the CPUs are divided
// among the ranks. Of `parallel`, sizes and how experts are shared are read. REQUIRES options that
// Validate accepts.
absl::StatusOr<ThreadRanks> LoadThreadRanks(const server::ModelOptions& options,
                                            const server::ParallelOptions& parallel,
                                            const comm::AllReduceOptions& all_reduce);

// The ids of a text file by the rule of the reference values: the beginning-of-sequence token, then
// the text without special tokens. At most `limit` ids are left to predict (0: all).
absl::StatusOr<std::vector<int32_t>> ReadTextIds(const std::string& path, int64_t limit,
                                                 const ThreadRanks& ranks);

}  // namespace nibble::cli
