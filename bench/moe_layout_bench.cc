// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/moe_layout_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "nlohmann/json.hpp"

#include "base/thread_pool.h"
#include "bench/all_to_all_experts.h"
#include "bench/allreduce_ranks.h"
#include "bench/limits.h"
#include "bench/moe_layouts.h"
#include "bench/report.h"
#include "bench/timing.h"

namespace nibble::bench {
namespace {

constexpr int64_t kMinRuns = 5;
constexpr int64_t kMaxRuns = 500;

absl::StatusOr<comm::CodecDesc> CodecOf(const MoeLayoutBenchOptions& options,
                                        const std::string& name) {
  const absl::StatusOr<comm::AllReduceOptions> all_reduce = comm::ParseAllReduce(name);
  if (!all_reduce.ok() || all_reduce->mode != comm::AllReduceOptions::Mode::kFixed) {
    return InvalidArgument("--codecs {}: one of float32, bf16, int8, int6, int5, int4, int3, int2",
                           name);
  }
  comm::CodecDesc codec = all_reduce->codec;
  codec.group_size = static_cast<int>(std::clamp<int64_t>(options.group.group_size, 0, 1 << 20));
  if (codec.is_integer()) {
    codec.spikes = options.group.spikes;
    codec.rotation = options.group.rotation;
    if (options.group.log2_scales) codec.scale = comm::ScaleFormat::kLog2Int8;
  }
  NIBBLE_RETURN_IF_ERROR(comm::Validate(codec));
  return codec;
}

double SqnrDb(const std::vector<float>& exact, const std::vector<float>& other) {
  double signal = 0.0;
  double noise = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = double{other[i]} - exact[i];
    signal += double{exact[i]} * exact[i];
    noise += error * error;
  }
  return 10.0 * std::log10(signal / std::max(noise, 1e-30));
}

// A layout with a codec.
struct Subject {
  std::string layout;
  std::string codec_name;
  comm::CodecDesc codec;
  std::unique_ptr<AllToAllExperts> all_to_all;  // null: PPMoE
  std::vector<double> seconds;
  double sqnr_db = 0.0;
  int64_t bytes_sent = 0;  // of this rank in a run; all-to-all's
};

absl::Status MeasureTokens(const MoeLayoutBenchOptions& options, MoeLayouts* layouts,
                           comm::GroupCommunicator* communicator, std::vector<Subject>* subjects) {
  NIBBLE_RETURN_IF_ERROR(layouts->TimePpMoe({}).status());
  const std::vector<float> exact = layouts->result();
  const auto time = [&](Subject& subject) {
    return subject.all_to_all == nullptr ? layouts->TimePpMoe(subject.codec)
                                         : layouts->TimeAllToAll(subject.all_to_all.get());
  };
  double sum = 0.0;
  for (Subject& subject : *subjects) {
    subject.seconds.clear();
    const AllToAllExperts* const all_to_all = subject.all_to_all.get();
    const int64_t sent_before = all_to_all == nullptr ? 0 : all_to_all->bytes_sent();
    NIBBLE_ASSIGN_OR_RETURN(const double seconds, time(subject));
    if (all_to_all != nullptr) subject.bytes_sent = all_to_all->bytes_sent() - sent_before;
    sum += seconds;
    subject.sqnr_db = SqnrDb(exact, layouts->result());
  }
  const double rounds = options.group.seconds * static_cast<double>(subjects->size()) / sum;
  int64_t num_rounds = static_cast<int64_t>(
      std::clamp(rounds, static_cast<double>(kMinRuns), static_cast<double>(kMaxRuns)));
  NIBBLE_RETURN_IF_ERROR(communicator->Broadcast(&num_rounds, sizeof(num_rounds), 0));
  // All in turn, so that what disturbs the machine for a while disturbs all.
  for (int64_t round = 0; round < num_rounds; ++round) {
    for (Subject& subject : *subjects) {
      NIBBLE_ASSIGN_OR_RETURN(const double seconds, time(subject));
      subject.seconds.push_back(seconds);
    }
  }
  return absl::OkStatus();
}

void AddRows(int64_t tokens, const std::vector<Subject>& subjects, Report* report) {
  double baseline = 0.0;
  for (const Subject& subject : subjects) {
    if (subject.all_to_all != nullptr && subject.codec.bits == 16) {
      baseline = Summarize(subject.seconds).median_s;
    }
  }
  for (const Subject& subject : subjects) {
    const Timing timing = Summarize(subject.seconds);
    double same_codec = 0.0;
    for (const Subject& other : subjects) {
      if (other.all_to_all != nullptr && other.codec_name == subject.codec_name) {
        same_codec = Summarize(other.seconds).median_s;
      }
    }
    nlohmann::ordered_json row = {{"layout", subject.layout},
                                  {"codec", subject.codec_name},
                                  {"tokens", tokens},
                                  {"runs", timing.runs},
                                  {"median_us", Rounded(timing.median_s * 1e6)},
                                  {"best_us", Rounded(timing.best_s * 1e6)},
                                  {"sqnr_db", Rounded(subject.sqnr_db)}};
    if (subject.all_to_all != nullptr) row["bytes_sent"] = subject.bytes_sent;
    row["over_all_to_all_same_codec"] = Rounded(same_codec / timing.median_s);
    if (baseline > 0.0) row["over_all_to_all_bf16"] = Rounded(baseline / timing.median_s);
    report->Add(std::move(row));
  }
}

absl::StatusOr<nlohmann::ordered_json> RunCases(const MoeLayoutBenchOptions& options,
                                                comm::GroupCommunicator* communicator,
                                                ThreadPool* pool, std::FILE* table) {
  Report report("moe-layout",
                {{"layout", "layout", 12},
                 {"codec", "codec", 8},
                 {"tokens", "tokens", 8},
                 {"median_us", "us", 11, 1},
                 {"over_all_to_all_same_codec", "x same codec", 14, 2},
                 {"over_all_to_all_bf16", "x a2a bf16", 12, 2},
                 {"sqnr_db", "SQNR dB", 9, 1}},
                communicator->rank() == 0 ? table : nullptr);
  NIBBLE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  std::vector<Subject> subjects;
  for (const std::string& name : options.codecs) {
    NIBBLE_ASSIGN_OR_RETURN(const comm::CodecDesc codec, CodecOf(options, name));
    subjects.push_back({.layout = "all-to-all",
                        .codec_name = name,
                        .codec = codec,
                        .all_to_all = std::make_unique<AllToAllExperts>(
                            communicator->transport(), codec, options.group.row_size, isa, pool),
                        .seconds = {}});
    subjects.push_back({.layout = "ppmoe",
                        .codec_name = name,
                        .codec = codec,
                        .all_to_all = nullptr,
                        .seconds = {}});
  }
  MoeLayouts layouts(options, communicator, pool);
  for (const int64_t tokens : options.tokens) {
    layouts.Fill(tokens);
    NIBBLE_RETURN_IF_ERROR(MeasureTokens(options, &layouts, communicator, &subjects));
    AddRows(tokens, subjects, &report);
  }
  if (communicator->rank() != 0) return nlohmann::ordered_json();
  return report.Finish(pool->num_threads(), nlohmann::ordered_json::object(),
                       {{"ranks", communicator->size()},
                        {"hosts", communicator->num_hosts()},
                        {"transport", options.group.transport},
                        {"hidden_size", options.group.row_size},
                        {"num_experts", options.num_experts},
                        {"num_experts_per_tok", options.num_experts_per_tok}});
}

}  // namespace

void MoeLayoutBenchOptions::Validate(std::vector<std::string>* violations) const {
  group.Validate(violations);
  CheckLimits("--tokens", tokens, 1, 1 << 16, violations);
  CheckLimits("--experts", {num_experts}, 1, 1024, violations);
  CheckLimits("--experts-per-token", {num_experts_per_tok}, 1, num_experts, violations);
  if (group.ranks > 0 && num_experts % group.ranks != 0) {
    violations->push_back(
        fmt::format("--experts {} does not divide among {} ranks", num_experts, group.ranks));
  }
  for (const std::string& name : codecs) {
    const absl::Status status = CodecOf(*this, name).status();
    if (!status.ok()) violations->push_back(std::string(status.message()));
  }
}

absl::StatusOr<nlohmann::ordered_json> RunMoeLayoutBench(const MoeLayoutBenchOptions& options,
                                                         std::FILE* table) {
  return RunOnRanks(options.group, [&](comm::GroupCommunicator* communicator, ThreadPool* pool) {
    return RunCases(options, communicator, pool, table);
  });
}

}  // namespace nibble::bench
