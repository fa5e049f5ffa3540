// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Metrics of a group of ranks, beside those of metrics.h. There are none without a group.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"

namespace nibble::server {

// What a size of message takes: labels of nibble:all_reduce_info.
struct AllReduceLabels {
  std::string up_to_bytes;  // "+Inf" for the last
  std::string algorithm;
  std::string codec;
};

// Thread-safe.
class RankMetrics {
 public:
  // `node_of_rank` [size]. Ranks are down until the first generation is formed. `reasons` are those
  // that OnLost may be told: their counters are there from the start, since Prometheus does not see
  // the first increment of one that comes later.
  RankMetrics(const std::string& model_name, std::vector<int> node_of_rank,
              const std::vector<std::string>& reasons = {},
              const Clock* clock = &Clock::Monotonic());
  ~RankMetrics();

  // `reason` is one of few words.
  void OnLost(int rank, std::string_view reason);
  // An outage begins, with or without a rank that was lost.
  void OnBroken();
  void OnFormed(uint64_t generation);
  void SetAllReduce(const std::vector<AllReduceLabels>& choices);

  std::string Serialize();

 private:
  struct Families;
  void CountOutage();

  const std::vector<int> node_of_rank_;
  const Clock* const clock_;
  std::unique_ptr<Families> families_;
};

}  // namespace nibble::server
