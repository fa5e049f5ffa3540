// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What computes for a server: a model in this process, or ranks in processes of their own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/exec/executor.h"
#include "engine/exec/rank_group.h"
#include "engine/model/model_config.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/cli/expert_setup.h"
#include "server/cli/kv_sizing.h"
#include "server/config.h"
#include "server/metrics/rank_metrics.h"

namespace nibble::cli {

// Members are destroyed from the last to the first: the executor before what it uses.
struct ModelBackend {
  std::unique_ptr<engine::Tokenizer> tokenizer;
  std::unique_ptr<ThreadPool> pool;                     // of a model in this process
  std::unique_ptr<engine::RankGroupObserver> observer;  // of ranks
  std::unique_ptr<engine::Executor> executor;
  engine::ModelConfig model;
  ExpertSetup experts;
  std::string quantization_name;
  int64_t weight_bytes = 0;  // of all ranks
  int64_t max_model_len = 0;
  KvSize kv;
  DType kv_dtype = DType::kBf16;
  std::string device;  // lines of the banner: "  device     cpu: ...\n"
  double load_seconds = 0.0;
};

// Told how far a start is, from any thread. What is null is not told.
struct StartWatch {
  void Begin(std::string_view part) const {
    if (on_part) on_part(part);
  }
  void Progress(int64_t done, int64_t total) const {
    if (on_progress) on_progress(done, total);
  }

  std::function<void(std::string_view part)> on_part;            // "loading weights"
  std::function<void(int64_t done, int64_t total)> on_progress;  // of that
};

absl::StatusOr<ModelBackend> StartLocalModel(const server::ServeConfig& config,
                                             const StartWatch& watch);

// The ranks of this host, and those of the nodes that join. Loads no weights here. `metrics` must
// outlive the executor.
absl::StatusOr<ModelBackend> StartRanks(const server::ServeConfig& config,
                                        server::RankMetrics* metrics, const StartWatch& watch = {});

}  // namespace nibble::cli
