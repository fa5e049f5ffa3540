// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/all_reduce_timing.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "base/aligned_buffer.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kSlotValues = shm::kSlotBytes / sizeof(float);

double MicrosecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Into slots of the size that a segment's have, and back two chunks later, as a two-shot all-reduce
// does: like them these slots stay in the cache, and only the message comes from memory.
void CopyThroughSlots(AlignedBuffer<float>* data, AlignedBuffer<float>* slots) {
  constexpr size_t kLag = 2;
  const size_t num_chunks = (data->size() + kSlotValues - 1) / kSlotValues;
  for (size_t step = 0; step < num_chunks + kLag; ++step) {
    for (const bool into : {true, false}) {
      const size_t chunk = into ? step : step - kLag;
      if (chunk >= num_chunks) continue;  // also those before the first
      float* const slot = slots->data() + chunk % shm::kNumSlots * kSlotValues;
      float* const part = data->data() + chunk * kSlotValues;
      const size_t values = std::min(kSlotValues, data->size() - chunk * kSlotValues);
      std::memcpy(into ? slot : part, into ? part : slot, values * sizeof(float));
    }
  }
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
  // Zero, so that sums of sums stay what they are: denormals and infinities are slow to add. On the
  // pages that activations have.
  auto data = AlignedBuffer<float>::Zeroed(static_cast<size_t>(count));
  AlignedBuffer<float> slots(shm::kNumSlots * kSlotValues);
  std::vector<double> copy_us;
  std::vector<double> reduce_us;
  for (int i = 0; i <= repeats; ++i) {
    NIBBLE_RETURN_IF_ERROR(collectives->Barrier(deadline));
    const Clock::time_point start = Clock::now();
    CopyThroughSlots(&data, &slots);
    if (i > 0) copy_us.push_back(MicrosecondsSince(start));
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
  const double copied_bytes = 2.0 * static_cast<double>(data.size_bytes());
  return AllReduceTiming{.median_us = Median(std::move(reduce_us)),
                         .memcpy_bound_us = us * (2.0 * ranks - 1.0) / (2.0 * ranks),
                         .memcpy_gb_per_s = copied_bytes / us * 1e-3};
}

}  // namespace nibble::comm
