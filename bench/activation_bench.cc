// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/activation_bench.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "bench/limits.h"
#include "bench/report.h"
#include "bench/sum_recorder.h"
#include "comm/codec/codec.h"

namespace nibble::bench {
namespace {

using comm::CodecDesc;

std::vector<CodecDesc> Codecs(const ActivationBenchOptions& options) {
  std::vector<CodecDesc> codecs;
  for (const int64_t bits : options.bits) {
    for (const int64_t group_size : options.group_sizes) {
      for (const bool rotation : {false, true}) {
        for (const bool spikes : {false, true}) {
          codecs.push_back({.bits = static_cast<int>(bits),
                            .group_size = static_cast<int>(group_size),
                            .spikes = spikes,
                            .rotation = rotation});
        }
      }
    }
  }
  return codecs;
}

// Sums come in the order of the layers, two of each.
bool IsAttention(size_t sum_idx) { return sum_idx % 2 == 0; }
std::string NameOf(size_t sum_idx) {
  return fmt::format("layer {} {}", sum_idx / 2, IsAttention(sum_idx) ? "attention" : "ffn");
}

nlohmann::ordered_json ToJson(size_t sum_idx, const RecordedSum& sum, int64_t row_size) {
  return {{"layer", sum_idx / 2},
          {"after", IsAttention(sum_idx) ? "attention" : "ffn"},
          {"rows", sum.num_rows},
          {"largest_message_bytes", sum.max_rows * row_size * 2},
          {"part_rms", Rounded(sum.parts.Rms())},
          {"part_max_over_rms", Rounded(sum.parts.MaxOverRms())},
          {"part_kurtosis", Rounded(sum.parts.Kurtosis())},
          {"sum_rms", Rounded(sum.sum.Rms())},
          {"sum_max_over_rms", Rounded(sum.sum.MaxOverRms())},
          {"sum_kurtosis", Rounded(sum.sum.Kurtosis())}};
}

nlohmann::ordered_json SpreadOfSums(const std::vector<RecordedSum>& sums, int64_t row_size,
                                    std::FILE* table) {
  Report report("activations",
                {{"all_reduce", "all-reduce", 20},
                 {"rows", "rows", 8},
                 {"part_rms", "parts: rms", 12, 4},
                 {"part_max_over_rms", "max/rms", 9, 1},
                 {"part_kurtosis", "kurtosis", 10, 1},
                 {"sum_rms", "sum: rms", 12, 4},
                 {"sum_max_over_rms", "max/rms", 9, 1},
                 {"sum_kurtosis", "kurtosis", 10, 1}},
                table);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (size_t i = 0; i < sums.size(); ++i) {
    rows.push_back(ToJson(i, sums[i], row_size));
    nlohmann::ordered_json named = rows.back();
    named["all_reduce"] = NameOf(i);
    report.Add(std::move(named));
  }
  return rows;
}

// The codec of an index over all sums: means of decibels, so that every layer counts alike.
nlohmann::ordered_json LossOf(const CodecDesc& codec, size_t codec_idx,
                              const std::vector<RecordedSum>& sums) {
  std::vector<double> each;
  double total[2] = {0.0, 0.0};  // attention, ffn
  for (size_t i = 0; i < sums.size(); ++i) {
    const SumLoss& loss = sums[i].losses[codec_idx];
    each.push_back(Rounded(Decibels(loss.signal, loss.noise)));
    total[IsAttention(i) ? 0 : 1] += each.back();
  }
  const auto worst = std::min_element(each.begin(), each.end());
  const double layers = static_cast<double>(sums.size()) / 2;
  return {{"codec", ToString(codec)},
          {"bits_per_value", Rounded(EffectiveBits(codec))},
          {"mean_db", Rounded((total[0] + total[1]) / (2 * layers))},
          {"attention_db", Rounded(total[0] / layers)},
          {"ffn_db", Rounded(total[1] / layers)},
          {"worst_db", *worst},
          {"worst", NameOf(static_cast<size_t>(worst - each.begin()))},
          {"db_of_all_reduces", each}};
}

}  // namespace

void ActivationBenchOptions::Validate(std::vector<std::string>* violations) const {
  CheckLimits("--tokens", {tokens}, 1, int64_t{1} << 24, violations);
  CheckLimits("--context", {context}, 2, int64_t{1} << 24, violations);
  for (const int64_t width : bits) {
    const CodecDesc codec{.bits = static_cast<int>(std::clamp<int64_t>(width, 0, 64))};
    if (comm::Validate(codec).ok() && codec.is_integer()) continue;
    violations->push_back(fmt::format("--bits is {}, want 2, 3, 4, 5, 6, 8", width));
  }
  for (const int64_t size : group_sizes) {
    const absl::Status status = comm::Validate(
        {.bits = 8, .group_size = static_cast<int>(std::clamp<int64_t>(size, 0, 4096))});
    if (!status.ok()) {
      violations->push_back(fmt::format("--group-size: {}", std::string(status.message())));
    }
  }
}

absl::StatusOr<nlohmann::ordered_json> RunActivationBench(const ActivationBenchOptions& options,
                                                          const ActivationSubject& subject) {
  if (subject.ranks.size() < 2) return InvalidArgument("one rank alone sums nothing");
  const engine::ModelConfig& config = subject.ranks[0].model->config();
  const std::vector<CodecDesc> codecs = Codecs(options);
  SumRecorder recorder({.num_ranks = static_cast<int>(subject.ranks.size()),
                        .num_sums = static_cast<size_t>(2 * config.num_layers),
                        .codecs = codecs,
                        .isa = subject.isa});
  std::vector<std::unique_ptr<comm::Communicator>> recording;
  std::vector<engine::PerplexityRank> ranks(subject.ranks.begin(), subject.ranks.end());
  int threads = 0;
  for (engine::PerplexityRank& rank : ranks) {
    recording.push_back(recorder.Wrap(rank.communicator));
    rank.communicator = recording.back().get();
    threads += rank.pool->num_threads();
  }
  // Windows do not overlap, so that no token's sums count twice.
  const auto scored = engine::ComputePerplexity(
      ranks, subject.ids, {.context = options.context, .stride = options.context});
  for (const engine::PerplexityRank& rank : subject.ranks) {
    rank.model->SetCommunicator(rank.communicator);
  }
  if (!scored.ok()) return scored.status();

  const std::vector<RecordedSum>& sums = recorder.sums();
  nlohmann::ordered_json spread = SpreadOfSums(sums, config.hidden_size, subject.table);
  Report report("activations",
                {{"codec", "codec", 26},
                 {"bits_per_value", "bits", 8, 3},
                 {"mean_db", "dB", 8, 1},
                 {"attention_db", "attention", 11, 1},
                 {"ffn_db", "ffn", 8, 1},
                 {"worst_db", "worst", 8, 1},
                 {"worst", "at", 20}},
                subject.table);
  for (size_t i = 0; i < codecs.size(); ++i) report.Add(LossOf(codecs[i], i, sums));
  return report.Finish(threads, nlohmann::ordered_json::object(),
                       {{"ranks", subject.ranks.size()},
                        {"tokens", scored->num_tokens},
                        {"context", options.context},
                        {"row_size", config.hidden_size},
                        {"perplexity", Rounded(scored->perplexity)},
                        {"all_reduces", std::move(spread)}});
}

}  // namespace nibble::bench
