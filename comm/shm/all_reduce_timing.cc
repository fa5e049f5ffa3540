// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/all_reduce_timing.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;

double MicrosecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Of each repetition the time of the rank it took longest: one that comes late finds the others'
// parts ready, and has seen nothing of the wait.
absl::Status TakeSlowest(ShmCollectives* collectives, std::vector<double>* us, Deadline deadline) {
  std::vector<double> all(us->size() * static_cast<size_t>(collectives->size()));
  NIBBLE_RETURN_IF_ERROR(
      collectives->AllGather(us->data(), us->size() * sizeof(double), all.data(), deadline));
  for (size_t i = 0; i < all.size(); ++i) {
    double& slowest = (*us)[i % us->size()];
    slowest = std::max(slowest, all[i]);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AllReduceTiming> TimeAllReduce(ShmCollectives* collectives, int64_t count,
                                              Algorithm algorithm, int repeats, ThreadPool* pool,
                                              Deadline deadline) {
  // Zero, so that sums of sums stay what they are: denormals and infinities are slow to add.
  std::vector<float> data(static_cast<size_t>(count), 0.0F);
  std::vector<float> copy(data.size(), 1.0F);
  std::vector<double> copy_us;
  std::vector<double> reduce_us;
  const size_t bytes = data.size() * sizeof(float);
  for (int i = 0; i <= repeats; ++i) {
    NIBBLE_RETURN_IF_ERROR(collectives->Barrier(deadline));
    const Clock::time_point start = Clock::now();
    std::memcpy(copy.data(), data.data(), bytes);
    if (i > 0) copy_us.push_back(MicrosecondsSince(start));
    data[data.size() / 2] = copy[data.size() / 3];  // the copy is used
  }
  for (int i = 0; i <= repeats; ++i) {
    NIBBLE_RETURN_IF_ERROR(collectives->Barrier(deadline));
    const Clock::time_point start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(collectives->AllReduce(data.data(), count, algorithm, pool, deadline));
    if (i > 0) reduce_us.push_back(MicrosecondsSince(start));
  }
  NIBBLE_RETURN_IF_ERROR(TakeSlowest(collectives, &copy_us, deadline));
  NIBBLE_RETURN_IF_ERROR(TakeSlowest(collectives, &reduce_us, deadline));
  const double ranks = collectives->size();
  const double us = Median(std::move(copy_us));
  return AllReduceTiming{.median_us = Median(std::move(reduce_us)),
                         .memcpy_bound_us = us * (2.0 * ranks - 1.0) / ranks,
                         .memcpy_gb_per_s = static_cast<double>(bytes) / us * 1e-3};
}

}  // namespace nibble::comm
