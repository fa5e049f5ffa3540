// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/allreduce_cases.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/aligned_buffer.h"
#include "bench/report.h"
#include "bench/ring_all_reduce.h"
#include "bench/timing.h"
#include "comm/choose_policy.h"
#include "comm/measure_policy.h"
#include "comm/shm/all_reduce_timing.h"

namespace nibble::bench {
namespace {

using comm::Algorithm;
using comm::AllReduceChoice;
using comm::AllReduceOptions;
using comm::CodecDesc;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMinRuns = 5;
constexpr int64_t kMaxRuns = 2000;
constexpr std::chrono::seconds kTimeout{60};
constexpr std::chrono::microseconds kPause{300};
// A message that goes to everybody whole: beyond this it only costs time.
constexpr int64_t kMaxOneShotBytes = 2 << 20;

// One row of the report.
struct Subject {
  std::string name;
  AllReduceChoice choice;
  bool is_ring = false;
  bool is_uncompressed = false;  // what the others are measured against
  std::vector<double> seconds;
  double sqnr_db = 0.0;
};

class Cases {
 public:
  Cases(const AllReduceBenchOptions& options, comm::GroupCommunicator* communicator,
        ThreadPool* pool, std::FILE* table)
      : options_(options),
        communicator_(communicator),
        pool_(pool),
        ring_(communicator->transport()),
        report_("allreduce",
                {{"codec", "codec", 10},
                 {"bytes", "bytes", 10},
                 {"choice", "choice", 34},
                 {"median_us", "us", 11, 1},
                 {"algorithm_gb_per_s", "GB/s", 9, 3},
                 {"speedup", "speedup", 9, 2},
                 {"share_of_bound", "of bound", 9, 3},
                 {"sqnr_db", "SQNR dB", 9, 1}},
                communicator->rank() == 0 ? table : nullptr) {}

  absl::StatusOr<nlohmann::ordered_json> Run() {
    NIBBLE_RETURN_IF_ERROR(PreparePolicies());
    for (const int64_t bytes : options_.sizes) NIBBLE_RETURN_IF_ERROR(RunSize(bytes));
    nlohmann::ordered_json members = {{"ranks", communicator_->size()},
                                      {"hosts", communicator_->num_hosts()},
                                      {"transport", options_.transport},
                                      {"row_size", options_.row_size}};
    if (!auto_policy_.choices.empty()) {
      members["auto"] = ToString(auto_policy_);
      if (communicator_->num_hosts() > 1) members["auto_measured_s"] = Rounded(auto_seconds_);
    }
    if (communicator_->rank() != 0) return nlohmann::ordered_json();
    return report_.Finish(pool_->num_threads(), std::move(copying_), members);
  }

 private:
  int size() const { return communicator_->size(); }

  // What each codec's name means in this group.
  absl::Status PreparePolicies() {
    for (const std::string& name : options_.codecs) {
      NIBBLE_ASSIGN_OR_RETURN(AllReduceOptions all_reduce, comm::ParseAllReduce(name));
      all_reduce.codec.group_size = static_cast<int>(options_.group_size);
      if (all_reduce.codec.is_integer() || all_reduce.mode == AllReduceOptions::Mode::kAuto) {
        all_reduce.codec.spikes = options_.spikes;
        all_reduce.codec.rotation = options_.rotation;
        if (options_.log2_scales) all_reduce.codec.scale = comm::ScaleFormat::kLog2Int8;
      }
      comm::AllReducePolicy policy =
          comm::UnmeasuredPolicy(all_reduce, communicator_->num_hosts(), size());
      if (all_reduce.mode == AllReduceOptions::Mode::kAuto) {
        if (communicator_->num_hosts() > 1) {
          const Clock::time_point start = Clock::now();
          NIBBLE_ASSIGN_OR_RETURN(policy, comm::MeasurePolicy({.codec = all_reduce.codec,
                                                               .row_size = options_.row_size},
                                                              communicator_, pool_));
          auto_seconds_ = std::chrono::duration<double>(Clock::now() - start).count();
        }
        auto_policy_ = policy;
      }
      policies_.emplace_back(name, std::move(policy));
    }
    return absl::OkStatus();
  }

  absl::Status RunSize(int64_t bytes) {
    const int64_t num_values = bytes / 2;
    row_size_ = std::min(options_.row_size, num_values);
    num_rows_ = num_values / row_size_;
    const int64_t count = num_rows_ * row_size_;
    Fill(count);
    NIBBLE_RETURN_IF_ERROR(ComputeExact());
    std::vector<Subject> subjects = SubjectsOf(bytes);
    NIBBLE_RETURN_IF_ERROR(Measure(&subjects));
    NIBBLE_RETURN_IF_ERROR(MeasureCopying(bytes, count));
    AddRows(bytes, subjects);
    return absl::OkStatus();
  }

  // Gaussian values, others on every rank.
  void Fill(int64_t count) {
    const auto size = static_cast<size_t>(count);
    if (input_.size() >= size && data_.size() >= size) return;
    input_ = AlignedBuffer<float>(size);
    exact_ = AlignedBuffer<float>(size);
    data_ = AlignedBuffer<float>(size);
    rounded_ = AlignedBuffer<BFloat16>(size);
    std::mt19937 bits(static_cast<uint32_t>(communicator_->rank() + 1));
    std::normal_distribution<float> normal;
    // A prime period is long enough: neighbours differ, and so do rows.
    std::vector<float> values(65'537);
    for (float& value : values) value = normal(bits);
    for (size_t i = 0; i < size; ++i) input_[i] = values[i % values.size()];
  }

  size_t DataBytes() const { return static_cast<size_t>(num_rows_ * row_size_) * sizeof(float); }

  absl::Status ComputeExact() {
    std::memcpy(exact_.data(), input_.data(), DataBytes());
    return communicator_->AllReduce(
        {.data = exact_.data(), .num_rows = num_rows_, .row_size = row_size_, .exact = true},
        pool_);
  }

  std::vector<Subject> SubjectsOf(int64_t bytes) const {
    constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
    std::vector<Subject> subjects;
    for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
      if (algorithm == Algorithm::kOneShot && bytes > kMaxOneShotBytes) continue;
      subjects.push_back({.name = "baseline",
                          .choice = {kNoLimit, algorithm, {.bits = 16}},
                          .is_uncompressed = true});
      // On one host the native float32 form is the fastest uncompressed one.
      if (communicator_->num_hosts() > 1) continue;
      subjects.push_back(
          {.name = "baseline", .choice = {kNoLimit, algorithm, {}}, .is_uncompressed = true});
    }
    subjects.push_back({.name = "ring", .is_ring = true, .is_uncompressed = true});
    for (const auto& [name, policy] : policies_) {
      subjects.push_back({.name = name, .choice = policy.For(num_rows_ * row_size_ * 2)});
    }
    return subjects;
  }

  // All in turn, so that what disturbs the machine for a while disturbs all.
  absl::Status Measure(std::vector<Subject>* subjects) {
    double sum = 0.0;
    for (Subject& subject : *subjects) {
      NIBBLE_ASSIGN_OR_RETURN(const double seconds, RunOnce(subject));
      sum += seconds;
      subject.sqnr_db = SqnrDb(subject);
    }
    const double rounds = options_.seconds * static_cast<double>(subjects->size()) / sum;
    int64_t num_rounds = static_cast<int64_t>(
        std::clamp(rounds, static_cast<double>(kMinRuns), static_cast<double>(kMaxRuns)));
    NIBBLE_RETURN_IF_ERROR(communicator_->Broadcast(&num_rounds, sizeof(num_rounds), 0));
    for (int64_t round = 0; round < num_rounds; ++round) {
      for (Subject& subject : *subjects) {
        NIBBLE_ASSIGN_OR_RETURN(const double seconds, RunOnce(subject));
        subject.seconds.push_back(seconds);
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> RunOnce(const Subject& subject) {
    const int64_t count = num_rows_ * row_size_;
    if (subject.is_ring) {
      for (int64_t i = 0; i < count; ++i) {
        rounded_[static_cast<size_t>(i)] = ToBFloat16(input_[static_cast<size_t>(i)]);
      }
    } else {
      std::memcpy(data_.data(), input_.data(), DataBytes());
    }
    // Between hosts nobody's figure depends on what the one before it left in the queues.
    if (communicator_->num_hosts() > 1) std::this_thread::sleep_for(kPause);
    NIBBLE_RETURN_IF_ERROR(communicator_->Barrier());
    const Clock::time_point start = Clock::now();
    if (subject.is_ring) {
      NIBBLE_RETURN_IF_ERROR(ring_.Run(rounded_.data(), count, comm::Deadline::After(kTimeout)));
    } else {
      NIBBLE_RETURN_IF_ERROR(communicator_->AllReduceBy(
          subject.choice, {.data = data_.data(), .num_rows = num_rows_, .row_size = row_size_},
          pool_));
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  double SqnrDb(const Subject& subject) const {
    double signal = 0.0;
    double noise = 0.0;
    for (size_t i = 0; i < DataBytes() / sizeof(float); ++i) {
      const double exact = exact_[i];
      const double error = (subject.is_ring ? ToFloat(rounded_[i]) : data_[i]) - exact;
      signal += exact * exact;
      noise += error * error;
    }
    return noise > 0.0 ? 10.0 * std::log10(signal / noise)
                       : std::numeric_limits<double>::infinity();
  }

  // What copying alone takes, of ranks that share memory.
  absl::Status MeasureCopying(int64_t bytes, int64_t count) {
    if (communicator_->num_hosts() > 1) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(
        const comm::AllReduceTiming timing,
        comm::TimeAllReduce(communicator_->collectives(), count, Algorithm::kTwoShot,
                            static_cast<int>(kMinRuns), pool_, comm::Deadline::After(kTimeout)));
    copying_[std::to_string(bytes)] = {{"memcpy_bound_us", Rounded(timing.memcpy_bound_us)},
                                       {"memcpy_gb_per_s", Rounded(timing.memcpy_gb_per_s)}};
    return absl::OkStatus();
  }

  void AddRows(int64_t bytes, const std::vector<Subject>& subjects) {
    double best = std::numeric_limits<double>::infinity();
    for (const Subject& subject : subjects) {
      if (subject.is_uncompressed) best = std::min(best, Summarize(subject.seconds).median_s);
    }
    for (const Subject& subject : subjects) {
      const Timing timing = Summarize(subject.seconds);
      const double bits = subject.is_ring ? 16.0 : comm::EffectiveBits(subject.choice.codec);
      const double rate = static_cast<double>(bytes) / timing.median_s * 1e-9;
      const double speedup = best / timing.median_s;
      const int n = size();
      nlohmann::ordered_json sqnr_db;  // null: exact
      if (!std::isinf(subject.sqnr_db)) sqnr_db = Rounded(subject.sqnr_db);
      report_.Add(
          {{"codec", subject.name},
           {"bytes", bytes},
           {"choice", subject.is_ring ? "ring bf16"
                                      : fmt::format("{} {}", ToString(subject.choice.algorithm),
                                                    ToString(subject.choice.codec))},
           {"runs", timing.runs},
           {"median_us", Rounded(timing.median_s * 1e6)},
           {"best_us", Rounded(timing.best_s * 1e6)},
           {"algorithm_gb_per_s", Rounded(rate)},
           {"bus_gb_per_s", Rounded(rate * 2.0 * (n - 1) / n)},
           {"effective_bits", Rounded(bits)},
           {"speedup", Rounded(speedup)},
           {"bound", Rounded(16.0 / bits)},
           {"share_of_bound", Rounded(speedup * bits / 16.0)},
           {"sqnr_db", sqnr_db}});
    }
  }

  const AllReduceBenchOptions& options_;
  comm::GroupCommunicator* const communicator_;
  ThreadPool* const pool_;
  RingAllReduce ring_;
  Report report_;
  std::vector<std::pair<std::string, comm::AllReducePolicy>> policies_;
  comm::AllReducePolicy auto_policy_;
  double auto_seconds_ = 0.0;
  nlohmann::ordered_json copying_ = nlohmann::ordered_json::object();
  int64_t num_rows_ = 0;
  int64_t row_size_ = 0;
  AlignedBuffer<float> input_;
  AlignedBuffer<float> exact_;  // the sum
  AlignedBuffer<float> data_;
  AlignedBuffer<BFloat16> rounded_;  // the ring's
};

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunAllReduceCases(const AllReduceBenchOptions& options,
                                                         comm::GroupCommunicator* communicator,
                                                         ThreadPool* pool, std::FILE* table) {
  return Cases(options, communicator, pool, table).Run();
}

}  // namespace nibble::bench
