// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the times of sums between devices say together: rows by size, ratios to what is not
// compressed, from which size on a codec is worth it, and what it costs where it is not.
#pragma once

#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "bench/cuda/allreduce_subject.h"
#include "bench/cuda_allreduce_bench.h"
#include "bench/roofline.h"
#include "bench/timing.h"

namespace nibble::bench {

struct AllReduceResult {
  AllReduceSpec spec;
  std::string transport;
  AllReduceOp op = AllReduceOp::kSum;
  int64_t message_bytes = 0;
  comm::AllReduceChoice choice;
  Timing timing;
};

class AllReduceReport {
 public:
  AllReduceReport(const CudaAllReduceBenchOptions& options, int num_ranks)
      : options_(options), num_ranks_(num_ranks) {}

  void Add(AllReduceResult result) { results_.push_back(std::move(result)); }
  void LeaveOut(const AllReduceSpec& spec, const std::string& why);
  // Rank 0's device.
  void Describe(nlohmann::ordered_json device, const DevicePeaks& peaks);

  // What was measured so far, with `"incomplete": true`, in the options' file, if they have one.
  absl::Status Save();
  nlohmann::ordered_json Finish(std::FILE* table);

 private:
  // Of one size: the norm behind a sum, fused or not, is one work.
  using Work = std::pair<int64_t, bool>;
  static Work WorkOf(const AllReduceResult& result) {
    return {result.message_bytes, result.op != AllReduceOp::kSum};
  }
  void FindBest();
  nlohmann::ordered_json Document(std::FILE* table);
  nlohmann::ordered_json Row(const AllReduceResult& result) const;
  nlohmann::ordered_json Crossovers() const;

  const CudaAllReduceBenchOptions& options_;
  const int num_ranks_;
  std::vector<AllReduceResult> results_;
  nlohmann::ordered_json left_out_ = nlohmann::ordered_json::object();
  nlohmann::ordered_json device_;
  DevicePeaks peaks_;
  // Seconds.
  std::map<Work, double> uncompressed_;                    // the best
  std::map<std::pair<std::string, Work>, double> codecs_;  // the best of a codec
};

}  // namespace nibble::bench
