// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda/allreduce_report.h"

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>

#include "base/log.h"
#include "bench/report.h"

namespace nibble::bench {
namespace {

// What a codec may cost beside bf16, where a message is small.
constexpr double kGoalFixedUs = 6.0;

template <typename Key>
void Lower(std::map<Key, double>* best, const Key& key, double value) {
  const auto [at, is_new] = best->emplace(key, value);
  if (!is_new) at->second = std::min(at->second, value);
}

std::string ChoiceText(const AllReduceResult& result) {
  if (result.spec.kind == AllReduceSpec::Kind::kNccl) return "ncclAllReduce bf16";
  return fmt::format("{} {}", comm::ToString(result.choice.algorithm),
                     comm::ToString(result.choice.codec));
}

}  // namespace

void AllReduceReport::LeaveOut(const AllReduceSpec& spec, const std::string& why) {
  left_out_[spec.name] = why;
}

void AllReduceReport::Describe(nlohmann::ordered_json device, const DevicePeaks& peaks) {
  device_ = std::move(device);
  peaks_ = peaks;
}

void AllReduceReport::FindBest() {
  uncompressed_.clear();
  codecs_.clear();
  for (const AllReduceResult& result : results_) {
    const double seconds = result.timing.median_s;
    if (result.spec.is_uncompressed()) Lower(&uncompressed_, WorkOf(result), seconds);
    Lower(&codecs_, {result.spec.name, WorkOf(result)}, seconds);
  }
}

nlohmann::ordered_json AllReduceReport::Row(const AllReduceResult& result) const {
  const double seconds = result.timing.median_s;
  const double rate = static_cast<double>(result.message_bytes) / seconds * 1e-9;
  const double bits = comm::EffectiveBits(result.choice.codec);
  nlohmann::ordered_json row = {
      {"bytes", result.message_bytes},
      {"op", std::string(ToString(result.op))},
      {"codec", result.spec.name},
      {"choice", ChoiceText(result)},
      {"transport", result.transport},
      {"runs", result.timing.runs},
      {"median_us", Rounded(seconds * 1e6)},
      {"best_us", Rounded(result.timing.best_s * 1e6)},
      {"algorithm_gb_per_s", Rounded(rate)},
      {"bus_gb_per_s", Rounded(rate * 2.0 * (num_ranks_ - 1) / num_ranks_)},
      {"effective_bits", Rounded(bits)}};
  const auto uncompressed = uncompressed_.find(WorkOf(result));
  if (uncompressed != uncompressed_.end()) {
    row["speedup"] = Rounded(uncompressed->second / seconds);
  }
  const auto nccl = codecs_.find({"nccl", WorkOf(result)});
  if (nccl != codecs_.end()) row["times_nccl"] = Rounded(nccl->second / seconds);
  if (result.op == AllReduceOp::kFusedNorm) {
    const auto separate =
        std::find_if(results_.begin(), results_.end(), [&](const AllReduceResult& other) {
          return other.op == AllReduceOp::kSumThenNorm && other.spec.name == result.spec.name &&
                 other.message_bytes == result.message_bytes &&
                 other.choice.algorithm == result.choice.algorithm;
        });
    if (separate != results_.end()) {
      row["times_separate"] = Rounded(separate->timing.median_s / seconds);
    }
  }
  return row;
}

// By codec: the size from which on it is faster than everything uncompressed (null: nowhere), and
// what it costs more than bf16 where the message is smallest.
nlohmann::ordered_json AllReduceReport::Crossovers() const {
  std::set<int64_t> sizes;
  for (const AllReduceResult& result : results_) sizes.insert(result.message_bytes);
  nlohmann::ordered_json crossovers = nlohmann::ordered_json::array();
  std::set<std::string> seen;
  for (const AllReduceResult& result : results_) {
    const std::string& name = result.spec.name;
    if (result.spec.kind != AllReduceSpec::Kind::kCodec || result.spec.is_uncompressed() ||
        !seen.insert(name).second) {
      continue;
    }
    nlohmann::ordered_json from;  // null
    for (auto size = sizes.rbegin(); size != sizes.rend(); ++size) {
      const auto mine = codecs_.find({name, {*size, false}});
      const auto other = uncompressed_.find({*size, false});
      if (mine == codecs_.end() || other == uncompressed_.end() || mine->second >= other->second) {
        break;
      }
      from = *size;
    }
    nlohmann::ordered_json entry = {{"codec", name}, {"from_bytes", from}};
    const auto fixed = codecs_.find({name, {*sizes.begin(), false}});
    const auto bf16 = codecs_.find({"bf16", {*sizes.begin(), false}});
    if (fixed != codecs_.end() && bf16 != codecs_.end()) {
      entry["fixed_over_bf16_us"] = Rounded((fixed->second - bf16->second) * 1e6);
    }
    crossovers.push_back(std::move(entry));
  }
  return crossovers;
}

absl::Status AllReduceReport::Save() {
  if (options_.save.empty()) return absl::OkStatus();
  nlohmann::ordered_json document = Document(nullptr);
  document["incomplete"] = true;
  return SaveDocument(document, options_.save);
}

nlohmann::ordered_json AllReduceReport::Finish(std::FILE* table) {
  nlohmann::ordered_json document = Document(table);
  if (!options_.save.empty()) {
    const absl::Status status = SaveDocument(document, options_.save);
    if (!status.ok()) log::Warning("{}", std::string(status.message()));
  }
  return document;
}

nlohmann::ordered_json AllReduceReport::Document(std::FILE* table) {
  FindBest();
  std::stable_sort(results_.begin(), results_.end(),
                   [](const AllReduceResult& a, const AllReduceResult& b) {
                     return std::tie(a.message_bytes, a.op) < std::tie(b.message_bytes, b.op);
                   });
  Report report("allreduce",
                {{"bytes", "bytes", 10},
                 {"op", "op", 10},
                 {"codec", "codec", 6},
                 {"choice", "choice", 30},
                 {"median_us", "us", 10, 1},
                 {"algorithm_gb_per_s", "GB/s", 8, 1},
                 {"speedup", "speedup", 8, 2},
                 {"times_nccl", "x nccl", 7, 2},
                 {"times_separate", "x separate", 11, 2}},
                table);
  nlohmann::ordered_json measured;  // what `auto` chose
  for (const AllReduceResult& result : results_) {
    if (result.spec.kind == AllReduceSpec::Kind::kMeasured && result.op == AllReduceOp::kSum) {
      measured.push_back({{"bytes", result.message_bytes}, {"choice", ChoiceText(result)}});
    }
    report.Add(Row(result));
  }
  nlohmann::ordered_json members = {{"device", device_},
                                    {"ranks", num_ranks_},
                                    {"row_size", options_.row_size},
                                    {"is_timing", options_.ranks_on_one_device == 0},
                                    {"crossovers", Crossovers()},
                                    {"goals", {{"fixed_over_bf16_us", kGoalFixedUs}}}};
  if (!measured.is_null()) members["auto"] = std::move(measured);
  if (!left_out_.empty()) members["left_out"] = left_out_;
  return report.Finish(num_ranks_, ToJson(peaks_), members);
}

}  // namespace nibble::bench
