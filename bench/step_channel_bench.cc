// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/step_channel_bench.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "bench/limits.h"
#include "bench/report.h"
#include "bench/timing.h"
#include "engine/exec/step_codec.h"

namespace nibble::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kWarmupSteps = 200;
constexpr double kCodecSeconds = 0.2;
constexpr int64_t kContext = 1024;  // tokens of each sequence of a decode plan
constexpr int64_t kBlockSize = 16;

// One token of each sequence, as the scheduler writes it.
engine::StepPlan DecodePlanOf(int64_t num_seqs) {
  engine::StepPlan plan;
  const auto blocks_per_seq = static_cast<int32_t>(kContext / kBlockSize);
  plan.max_blocks_per_seq = blocks_per_seq;
  plan.query_start.push_back(0);
  for (int32_t s = 0; s < static_cast<int32_t>(num_seqs); ++s) {
    plan.token_ids.push_back(s);
    plan.positions.push_back(static_cast<int32_t>(kContext) - 1);
    plan.slot_mapping.push_back((s + 1) * static_cast<int32_t>(kContext) - 1);
    plan.query_start.push_back(s + 1);
    plan.context_lens.push_back(static_cast<int32_t>(kContext));
    for (int32_t b = 0; b < blocks_per_seq; ++b) {
      plan.block_tables.push_back(s * blocks_per_seq + b);
    }
    plan.logits_indices.push_back(s);
    plan.sampling.push_back({.seed = static_cast<uint64_t>(s), .output_index = s});
  }
  return plan;
}

nlohmann::ordered_json CodecRow(int64_t num_seqs) {
  const engine::StepPlan plan = DecodePlanOf(num_seqs);
  engine::StepOutput output;
  output.tokens.resize(static_cast<size_t>(num_seqs));
  const std::string plan_bytes = EncodePlan(plan);
  const std::string output_bytes = EncodeOutput(output);
  bool ok = true;
  const auto time = [](const auto& body) {
    return Rounded(Measure(kCodecSeconds, 10, [&](int64_t) { body(); }).median_s * 1e6);
  };
  nlohmann::ordered_json row;
  row["plan"] = "decode";
  row["sequences"] = num_seqs;
  row["bytes"] = plan_bytes.size();
  row["encode_us"] = time([&] { ok = ok && EncodePlan(plan).size() == plan_bytes.size(); });
  row["decode_us"] = time([&] { ok = ok && engine::DecodePlan(plan_bytes).ok(); });
  row["output_us"] = time([&] {
    ok = ok && EncodeOutput(output).size() == output_bytes.size() &&
         engine::DecodeOutput(output_bytes).ok();
  });
  row["ok"] = ok;
  return row;
}

absl::StatusOr<nlohmann::ordered_json> EmptyPlanRow(const StepChannelBenchOptions& options,
                                                    engine::Executor* executor) {
  const engine::StepPlan plan{.query_start = {0}};
  for (int64_t i = 0; i < kWarmupSteps; ++i) {
    NIBBLE_RETURN_IF_ERROR(executor->Execute(plan).status());
  }
  std::vector<double> us;
  us.reserve(static_cast<size_t>(options.steps));
  for (int64_t i = 0; i < options.steps; ++i) {
    if (options.pause_us > 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(options.pause_us));
    }
    const auto start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(executor->Execute(plan).status());
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::sort(us.begin(), us.end());
  const auto percentile = [&](size_t p) { return Rounded(us[(us.size() - 1) * p / 100]); };
  nlohmann::ordered_json row;
  row["plan"] = "empty";
  row["sequences"] = 0;
  row["bytes"] = EncodePlan(plan).size();
  row["median_us"] = percentile(50);
  row["p90_us"] = percentile(90);
  row["p99_us"] = percentile(99);
  row["best_us"] = percentile(0);
  return row;
}

}  // namespace

void StepChannelBenchOptions::Validate(std::vector<std::string>* violations) const {
  CheckLimits("--steps", {steps}, 1, 10'000'000, violations);
  CheckLimits("--pause-us", {pause_us}, 0, 1'000'000, violations);
  CheckLimits("--batch", batches, 1, 4096, violations);
}

absl::StatusOr<nlohmann::ordered_json> RunStepChannelBench(const StepChannelBenchOptions& options,
                                                           const StepChannelSubject& subject) {
  Report report("step-channel",
                {{"plan", "plan", 7},
                 {"sequences", "sequences", 10},
                 {"bytes", "bytes", 8},
                 {"median_us", "median us", 10, 1},
                 {"p90_us", "p90 us", 9, 1},
                 {"p99_us", "p99 us", 9, 1},
                 {"encode_us", "encode us", 10, 2},
                 {"decode_us", "decode us", 10, 2},
                 {"output_us", "output us", 10, 2}},
                subject.table);
  NIBBLE_ASSIGN_OR_RETURN(nlohmann::ordered_json empty, EmptyPlanRow(options, subject.executor));
  report.Add(std::move(empty));
  for (const int64_t num_seqs : options.batches) {
    nlohmann::ordered_json row = CodecRow(num_seqs);
    if (!row["ok"].get<bool>()) return Internal("a plan of {} sequences was not coded", num_seqs);
    row.erase("ok");
    report.Add(std::move(row));
  }
  nlohmann::ordered_json members;
  members["ranks"] = subject.num_ranks;
  members["pause_us"] = options.pause_us;
  return report.Finish(1, nlohmann::ordered_json::object(), members);
}

}  // namespace nibble::bench
