// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A layer's experts in both layouts of moe_layout_bench.h on one rank, each timed.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/all_to_all_experts.h"
#include "bench/moe_layout_bench.h"
#include "comm/codec/codec.h"
#include "comm/group_communicator.h"

namespace nibble::bench {

class MoeLayouts {
 public:
  // All of them must outlive it.
  MoeLayouts(const MoeLayoutBenchOptions& options, comm::GroupCommunicator* communicator,
             ThreadPool* pool)
      : options_(options),
        communicator_(communicator),
        pool_(pool),
        hidden_(options.group.row_size) {}

  // Gaussian partial sums, and k different experts for each token, the same on all ranks.
  void Fill(int64_t num_tokens);

  // Seconds of a layer; its result is in result() afterwards, on all ranks.
  absl::StatusOr<double> TimePpMoe(const comm::CodecDesc& codec);
  absl::StatusOr<double> TimeAllToAll(AllToAllExperts* layer);

  const std::vector<float>& result() const { return data_; }

 private:
  absl::Status Start();
  absl::Status Sum(const comm::CodecDesc& codec, std::vector<float>* x);
  void RunOwnExperts();

  const MoeLayoutBenchOptions& options_;
  comm::GroupCommunicator* const communicator_;
  ThreadPool* const pool_;
  const int64_t hidden_;
  int64_t num_tokens_ = 0;
  std::vector<float> input_;
  std::vector<float> data_;
  std::vector<float> out_;
  std::vector<int32_t> expert_ids_;
  std::vector<float> weights_;
};

}  // namespace nibble::bench
