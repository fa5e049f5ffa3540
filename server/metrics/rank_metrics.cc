// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/rank_metrics.h"

#include <mutex>
#include <utility>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace nibble::server {

using Labels = prometheus::Labels;

struct RankMetrics::Families {
  explicit Families(const std::string& model_name) : labels{{"model_name", model_name}} {}

  Labels OfRank(int rank, int node) const {
    Labels result = labels;
    result["rank"] = std::to_string(rank);
    result["node"] = std::to_string(node);
    return result;
  }

  // Before the members that use them.
  Labels labels;
  prometheus::Registry registry;

  prometheus::Family<prometheus::Gauge>& up = prometheus::BuildGauge()
                                                  .Name("nibble:rank_up")
                                                  .Help("1 while the rank takes part in the group.")
                                                  .Register(registry);
  prometheus::Family<prometheus::Counter>& losses = prometheus::BuildCounter()
                                                        .Name("nibble:rank_losses_total")
                                                        .Help("Times that a rank was lost.")
                                                        .Register(registry);
  prometheus::Counter& formations = prometheus::BuildCounter()
                                        .Name("nibble:group_formations_total")
                                        .Help("Times that the group was formed.")
                                        .Register(registry)
                                        .Add(labels);
  prometheus::Gauge& generation = prometheus::BuildGauge()
                                      .Name("nibble:group_generation")
                                      .Help("Number of the group that computes, or did last.")
                                      .Register(registry)
                                      .Add(labels);
  prometheus::Counter& outage = prometheus::BuildCounter()
                                    .Name("nibble:outage_seconds_total")
                                    .Help("Time without a whole group, the start left out.")
                                    .Register(registry)
                                    .Add(labels);
  prometheus::Family<prometheus::Gauge>& all_reduce =
      prometheus::BuildGauge()
          .Name("nibble:all_reduce_info")
          .Help("How sums of up to so many bytes travel; the value is always 1.")
          .Register(registry);

  std::mutex mutex;
  // Guarded by mutex:
  bool formed = false;           // once: before that it is the start, no outage
  int64_t outage_since_ns = -1;  // counted up to here; -1: the group is whole
};

RankMetrics::RankMetrics(const std::string& model_name, std::vector<int> node_of_rank,
                         const std::vector<std::string>& reasons, const Clock* clock)
    : node_of_rank_(std::move(node_of_rank)),
      clock_(clock),
      families_(std::make_unique<Families>(model_name)) {
  for (size_t rank = 0; rank < node_of_rank_.size(); ++rank) {
    Labels labels = families_->OfRank(static_cast<int>(rank), node_of_rank_[rank]);
    families_->up.Add(labels).Set(0);
    for (const std::string& reason : reasons) {
      labels["reason"] = reason;
      families_->losses.Add(labels);
    }
  }
}

RankMetrics::~RankMetrics() = default;

void RankMetrics::CountOutage() {
  if (families_->outage_since_ns < 0) return;
  const int64_t now_ns = clock_->NowNs();
  families_->outage.Increment(static_cast<double>(now_ns - families_->outage_since_ns) * 1e-9);
  families_->outage_since_ns = now_ns;
}

void RankMetrics::OnLost(int rank, std::string_view reason) {
  const Labels labels = families_->OfRank(rank, node_of_rank_.at(static_cast<size_t>(rank)));
  families_->up.Add(labels).Set(0);
  Labels with_reason = labels;
  with_reason["reason"] = reason;
  families_->losses.Add(with_reason).Increment();
  OnBroken();
}

void RankMetrics::OnBroken() {
  const std::lock_guard lock(families_->mutex);
  if (families_->formed && families_->outage_since_ns < 0)
    families_->outage_since_ns = clock_->NowNs();
}

void RankMetrics::OnFormed(uint64_t generation) {
  for (size_t rank = 0; rank < node_of_rank_.size(); ++rank) {
    families_->up.Add(families_->OfRank(static_cast<int>(rank), node_of_rank_[rank])).Set(1);
  }
  families_->formations.Increment();
  families_->generation.Set(static_cast<double>(generation));
  const std::lock_guard lock(families_->mutex);
  CountOutage();
  families_->formed = true;
  families_->outage_since_ns = -1;
}

void RankMetrics::SetAllReduce(const std::vector<AllReduceLabels>& choices) {
  for (const AllReduceLabels& choice : choices) {
    Labels labels = families_->labels;
    labels["up_to_bytes"] = choice.up_to_bytes;
    labels["algorithm"] = choice.algorithm;
    labels["codec"] = choice.codec;
    families_->all_reduce.Add(labels).Set(1);
  }
}

std::string RankMetrics::Serialize() {
  {
    const std::lock_guard lock(families_->mutex);
    CountOutage();
  }
  return prometheus::TextSerializer().Serialize(families_->registry.Collect());
}

}  // namespace nibble::server
