// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda/allreduce_rank.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "nlohmann/json.hpp"

#include "base/cuda/buffer.h"
#include "base/cuda/stream.h"
#include "base/thread_pool.h"
#include "bench/cuda/allreduce_memory.h"
#include "bench/cuda/allreduce_report.h"
#include "bench/cuda/allreduce_subject.h"
#include "bench/cuda/device_meter.h"
#include "bench/cuda/device_peaks.h"
#include "comm/group.h"

namespace nibble::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Communicators = std::vector<std::unique_ptr<comm::Communicator>>;

constexpr int kMaxRuns = 200;
// Reading that keeps a stream busy while calls behind it are enqueued.
constexpr int64_t kHoldBytes = int64_t{64} << 20;

// What goes to everybody whole only costs time beyond this.
constexpr int64_t kMaxOneShotBytes = 2 << 20;
bool IsTooLarge(const AllReduceSpec& spec, int64_t message_bytes) {
  return spec.kind == AllReduceSpec::Kind::kCodec && spec.algorithm == comm::Algorithm::kOneShot &&
         message_bytes > kMaxOneShotBytes;
}

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One rank, on its own thread. All ranks do the same in the same order; whatever has to be decided
// follows from times that all have seen.
class Rank {
 public:
  Rank(const CudaAllReduceBenchOptions& options, const gpu::DeviceCaps& caps,
       comm::Communicator* control, AllReduceReport* report)
      : options_(options), caps_(caps), control_(control), report_(report) {}

  absl::Status Prepare() {
    NIBBLE_ASSIGN_OR_RETURN(meter_, DeviceMeter::Create(caps_.index, options_.meter));
    NIBBLE_ASSIGN_OR_RETURN(peaks_, meter_.MeasurePeaks());
    NIBBLE_ASSIGN_OR_RETURN(begin_, gpu::Event::Create(/*timing=*/true));
    NIBBLE_ASSIGN_OR_RETURN(end_, gpu::Event::Create(/*timing=*/true));
    max_values_ = *std::max_element(options_.sizes.begin(), options_.sizes.end()) / 2;
    const int64_t hold_bytes = std::min(kHoldBytes, meter_.rotated_bytes() / 16 * 16 + 16);
    NIBBLE_RETURN_IF_ERROR(
        memory_.Allocate(options_, control_->rank(), max_values_, hold_bytes, meter_.stream()));
    return meter_.Synchronize();
  }
  const DevicePeaks& peaks() const { return peaks_; }
  nlohmann::ordered_json Describe() const { return meter_.Describe(); }

  // Every size and operation of a subject; none where these links do not have it.
  absl::Status Run(const AllReduceSpec& spec, comm::Communicator* host,
                   const absl::StatusOr<const comm::NcclLibrary*>& nccl) {
    const AllReduceLinks links = {.host = host,
                                  .caps = caps_,
                                  .transport = options_.transport,
                                  .max_values = max_values_,
                                  .row_size = options_.row_size,
                                  .pool = &pool_};
    auto subject = MakeAllReduceSubject(spec, links, nccl);
    if (!subject.ok() && absl::IsUnimplemented(subject.status())) {
      if (report_ != nullptr) report_->LeaveOut(spec, std::string(subject.status().message()));
      return absl::OkStatus();
    }
    NIBBLE_RETURN_IF_ERROR(subject.status());
    const absl::Status status = RunSubject(spec, subject->get());
    if (!status.ok()) (*subject)->Abort(std::string(status.message()));
    return status;
  }

 private:
  absl::Status RunSubject(const AllReduceSpec& spec, AllReduceSubject* subject) {
    for (const int64_t bytes : options_.sizes) {
      if (IsTooLarge(spec, bytes)) continue;
      const AllReduceRows rows = memory_.Rows(bytes, options_.row_size);
      const comm::AllReduceChoice choice = subject->Choice(rows);
      for (const AllReduceOp op : kAllReduceOps) {
        if (op == AllReduceOp::kFusedNorm && !subject->IsFused(rows)) continue;
        NIBBLE_ASSIGN_OR_RETURN(const Timing timing, Time(subject, op, rows));
        if (report_ == nullptr) continue;
        report_->Add({.spec = spec,
                      .transport = subject->name(),
                      .op = op,
                      .message_bytes = rows.sum.num_rows * rows.sum.row_size * 2,
                      .choice = choice,
                      .timing = timing});
      }
    }
    return control_->Barrier();  // what peers wait for is there until all are through
  }

  // Of one call, on the slowest rank of each run.
  absl::StatusOr<Timing> Time(AllReduceSubject* subject, AllReduceOp op,
                              const AllReduceRows& rows) {
    hold_reads_ = 0;
    NIBBLE_ASSIGN_OR_RETURN(const Sample first, RunOnce(subject, op, rows));
    if (subject->is_asynchronous()) {
      const double read_s =
          static_cast<double>(memory_.hold.size()) / std::max(peaks_.read_bytes_per_s, 1.0);
      const double wanted = std::min(1.5 * first.enqueue_s, options_.max_hold_seconds);
      hold_reads_ = static_cast<int>(std::min(wanted / read_s, 1000.0)) + 1;
    }
    const double call_s = std::max(first.call_s, 1e-7);
    const int num_runs = static_cast<int>(
        std::clamp(options_.meter.seconds / (call_s * options_.calls),
                   static_cast<double>(options_.meter.min_runs), static_cast<double>(kMaxRuns)));
    std::vector<double> seconds;
    for (int run = 0; run < num_runs; ++run) {
      NIBBLE_ASSIGN_OR_RETURN(const Sample sample, RunOnce(subject, op, rows));
      seconds.push_back(sample.call_s);
    }
    return Summarize(std::move(seconds));
  }

  struct Sample {
    double call_s = 0.0;
    double enqueue_s = 0.0;  // that the host took for all calls
  };
  absl::StatusOr<Sample> RunOnce(AllReduceSubject* subject, AllReduceOp op,
                                 const AllReduceRows& rows) {
    cudaStream_t stream = meter_.stream();
    // Sums grow with every call.
    NIBBLE_RETURN_IF_ERROR(
        gpu::CopyOnDevice(memory_.delta.data(), memory_.input.data(),
                          static_cast<size_t>(rows.sum.num_rows * rows.sum.row_size * 2), stream));
    NIBBLE_RETURN_IF_ERROR(meter_.Synchronize());
    NIBBLE_RETURN_IF_ERROR(control_->Barrier());
    for (int i = 0; i < hold_reads_; ++i) {
      NIBBLE_RETURN_IF_ERROR(LaunchRead(memory_.hold.data(),
                                        static_cast<int64_t>(memory_.hold.size()),
                                        memory_.sink.data(), caps_, stream));
    }
    const Clock::time_point start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(subject->Enqueue(op, rows, stream));  // ranks meet
    NIBBLE_RETURN_IF_ERROR(begin_.Record(stream));
    for (int call = 0; call < options_.calls; ++call) {
      NIBBLE_RETURN_IF_ERROR(subject->Enqueue(op, rows, stream));
    }
    NIBBLE_RETURN_IF_ERROR(end_.Record(stream));
    Sample sample = {.enqueue_s = SecondsSince(start)};
    NIBBLE_RETURN_IF_ERROR(subject->Watch(stream));
    NIBBLE_RETURN_IF_ERROR(meter_.Synchronize());
    NIBBLE_RETURN_IF_ERROR(subject->Check());
    NIBBLE_ASSIGN_OR_RETURN(const float ms, gpu::ElapsedMs(begin_, end_));
    sample.call_s = static_cast<double>(ms) * 1e-3 / options_.calls;
    // The slowest rank's.
    std::vector<Sample> all(static_cast<size_t>(control_->size()));
    NIBBLE_RETURN_IF_ERROR(control_->AllGather(&sample, sizeof(sample), all.data()));
    for (const Sample& other : all) {
      sample.call_s = std::max(sample.call_s, other.call_s);
      sample.enqueue_s = std::max(sample.enqueue_s, other.enqueue_s);
    }
    return sample;
  }

  const CudaAllReduceBenchOptions& options_;
  const gpu::DeviceCaps caps_;
  comm::Communicator* const control_;  // the benchmark's own
  AllReduceReport* const report_;      // of rank 0; null: this is another
  ThreadPool pool_{1};
  DeviceMeter meter_;
  DevicePeaks peaks_;
  AllReduceMemory memory_;
  gpu::Event begin_;
  gpu::Event end_;
  int64_t max_values_ = 0;
  int hold_reads_ = 0;
};

// The first error of any rank; it ends what the others wait for.
class FirstError {
 public:
  void Set(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    if (first_.ok()) first_ = status;
  }
  absl::Status Get() {
    const std::lock_guard lock(mutex_);
    return first_;
  }

 private:
  std::mutex mutex_;
  absl::Status first_;  // guarded by mutex_
};

struct Group {
  AllReduceSpec spec;
  Communicators hosts;  // of each rank
};

absl::StatusOr<std::vector<Group>> MakeGroups(const CudaAllReduceBenchOptions& options,
                                              int num_ranks) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<AllReduceSpec> specs, AllReduceSpecs(options));
  std::vector<Group> groups;
  for (const AllReduceSpec& spec : specs) {
    NIBBLE_ASSIGN_OR_RETURN(Communicators hosts, comm::MakeThreadGroup(num_ranks, spec.mode));
    groups.push_back({spec, std::move(hosts)});
  }
  return groups;
}

absl::Status RunRank(const CudaAllReduceBenchOptions& options, const gpu::DeviceCaps& caps,
                     const std::vector<Group>& groups,
                     const absl::StatusOr<const comm::NcclLibrary*>& nccl,
                     comm::Communicator* control, AllReduceReport* report) {
  NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(caps.index));
  const auto rank_idx = static_cast<size_t>(control->rank());
  Rank rank(options, caps, control, report);
  NIBBLE_RETURN_IF_ERROR(rank.Prepare());
  if (report != nullptr) {
    report->Describe(rank.Describe(), rank.peaks());
    NIBBLE_RETURN_IF_ERROR(report->Save());
  }
  NIBBLE_RETURN_IF_ERROR(control->Barrier());
  for (const Group& group : groups) {
    comm::Communicator* const host = group.hosts[rank_idx].get();
    const absl::Status status = rank.Run(group.spec, host, nccl);
    if (!status.ok()) host->Abort(std::string(status.message()));
    NIBBLE_RETURN_IF_ERROR(status);
    if (report != nullptr) NIBBLE_RETURN_IF_ERROR(report->Save());
    NIBBLE_RETURN_IF_ERROR(control->Barrier());
  }
  // Freeing memory waits for a device, and with it for what others wait for.
  return control->Barrier();
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunAllReduceRanks(
    const CudaAllReduceBenchOptions& options, const std::vector<gpu::DeviceCaps>& devices,
    const absl::StatusOr<const comm::NcclLibrary*>& nccl, std::FILE* table) {
  const int num_ranks = static_cast<int>(devices.size());
  NIBBLE_ASSIGN_OR_RETURN(
      const Communicators controls,
      comm::MakeThreadGroup(num_ranks, {.mode = comm::AllReduceOptions::Mode::kNone}));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Group> groups, MakeGroups(options, num_ranks));
  AllReduceReport report(options, num_ranks);
  FirstError error;
  std::vector<std::thread> threads;
  for (size_t r = 0; r < devices.size(); ++r) {
    threads.emplace_back([&, r] {
      comm::Communicator* const control = controls[r].get();
      const absl::Status status =
          RunRank(options, devices[r], groups, nccl, control, r == 0 ? &report : nullptr);
      if (status.ok()) return;
      error.Set(status);
      control->Abort(std::string(status.message()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  NIBBLE_RETURN_IF_ERROR(error.Get());
  return report.Finish(table);
}

}  // namespace nibble::bench
