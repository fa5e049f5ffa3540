// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The executor of several ranks: sends every plan to all of them, takes the tokens from rank 0 of
// the last pipeline stage, and keeps the group alive. With several stages as many steps may be
// under way: while one stage computes a step, the next one computes the step before it. When a rank
// dies, stops answering or cannot be reached, the generation ends: Finish returns UNAVAILABLE
// naming the rank for all steps under way, the others leave what they wait in, and once the rank is
// back (restarted, or joined again) a new generation is formed. Weights of ranks that lived are
// kept, KV contents are not. ../README.md has the life of a failure.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/all_reduce.h"
#include "comm/ranks/rank_hub.h"
#include "engine/exec/executor.h"
#include "engine/exec/group_clock.h"
#include "engine/exec/local_executor_options.h"
#include "engine/exec/rank_protocol.h"

namespace nibble::engine {

// How long a rank whose process answers may take for a part before it is taken for hung, named and
// started anew. Far above what the slowest machine needs.
struct RankPatience {
  std::chrono::milliseconds first_word{120'000};  // from its start to its first frame
  std::chrono::milliseconds allocate{300'000};    // its KV cache
  std::chrono::milliseconds prepare{60'000};      // leaving one generation for the next
  std::chrono::milliseconds connect{120'000};     // to it, measuring included
  std::chrono::milliseconds compute{300'000};     // from one collective or stage to the next
};

struct RankGroupOptions {
  // Of all ranks of the model, by RankPlace::world_rank(): the ranks of stage 0, then those of
  // stage 1... [num_stages * ranks of a stage], from 0, rising by one at most.
  std::vector<int> node_of_rank;
  int num_stages = 1;    // pipeline stages, and steps that may be under way at once
  int expert_size = 1;   // what the ranks' RankPlace says too
  std::string group_id;  // unique on these hosts; letters, digits, '-'
  int64_t vocab_size = 0;
  int64_t row_size = 0;  // hidden size
  comm::AllReduceOptions all_reduce;
  comm::AllReducePolicy policy;                      // measured earlier (policy() below), or empty
  std::chrono::milliseconds rank_timeout{5'000};     // silence after which a rank counts as lost
  std::chrono::milliseconds start_timeout{600'000};  // loading
  std::chrono::milliseconds load_interval{1'000};    // after which expert_load() is asked for anew
  RankPatience patience;
  std::shared_ptr<GroupClock> clock;  // of tests; null: the steady clock
};

// Called from the group's threads; must not block.
class RankGroupObserver {
 public:
  virtual ~RankGroupObserver() = default;
  virtual void OnRankLost(int rank, comm::LossReason reason, const std::string& why) = 0;
  // A generation that served has ended, with or without a rank that was lost.
  virtual void OnBroken(const std::string& why) = 0;
  // A generation is complete: the first one, and every one after a loss.
  virtual void OnFormed(uint64_t generation, double seconds) = 0;
};

class RankGroup final : public Executor {
 public:
  // Given what all ranks told, decides blocks and limits; an error ends the start.
  using ChooseSizes =
      std::function<absl::StatusOr<LocalExecutorOptions>(const std::vector<RankDescription>&)>;

  // Starts the hub, waits until all ranks have loaded and the first generation is formed.
  // `observer` (may be null) and `progress` (bytes loaded of all ranks, of; may be null) as said.
  static absl::StatusOr<std::unique_ptr<RankGroup>> Start(
      std::unique_ptr<comm::RankHub> hub, const RankGroupOptions& options, ChooseSizes choose,
      RankGroupObserver* observer, std::function<void(int64_t, int64_t)> progress);
  ~RankGroup() override;  // tells the ranks to end, and stops the hub

  ExecutorLimits limits() const override;
  absl::Status Begin(const StepPlan& plan) override;
  absl::StatusOr<StepOutput> Finish() override;
  int max_steps_in_flight() const override;
  absl::Status Ready() const override;
  // With what ranks had counted that were lost, but for the last load_interval.
  ExpertLoad expert_load() const override;

  const std::vector<RankDescription>& ranks() const;
  // Every stage has its own; this is that of the first stage on several hosts, or of the first one.
  comm::AllReducePolicy policy() const;

 private:
  class Impl;
  explicit RankGroup(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::engine
