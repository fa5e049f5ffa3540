// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/cuda/step_staging.h"

#include <algorithm>
#include <utility>

#include "engine/sampling/adjust.h"
#include "engine/sampling/sampler.h"

namespace nibble::engine {
namespace {

constexpr int64_t kAlignment = 64;

// Sections of a buffer, one after another.
class Sections {
 public:
  template <typename T>
  int64_t Add(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

struct Layout {
  Layout(int64_t num_rows, int64_t num_samples) {
    Sections sections;
    token_ids = sections.Add<int32_t>(num_rows);
    positions = sections.Add<int32_t>(num_rows);
    slot_mapping = sections.Add<int32_t>(num_rows);
    expert_positions = sections.Add<int32_t>(num_rows);
    kept_rows = sections.Add<int32_t>(num_samples);
    kept_positions = sections.Add<int32_t>(num_samples);
    sampling = sections.Add<kernels::cuda::SampleParams>(num_samples);
    bytes = sections.bytes();
  }
  int64_t token_ids, positions, slot_mapping, expert_positions, kept_rows, kept_positions, sampling;
  int64_t bytes;
};

// A padded array: what comes behind the plan's entries is `padding`.
void Fill(const std::vector<int32_t>& values, int64_t count, int32_t padding, void* out) {
  auto* const to = static_cast<int32_t*>(out);
  std::copy(values.begin(), values.end(), to);
  std::fill(to + values.size(), to + count, padding);
}

kernels::cuda::SampleParams ToParams(const SamplingRow& row) {
  return {.temperature = row.temperature > 0.0F ? row.temperature : 0.0F,
          .top_p = row.top_p,
          .min_p = row.min_p,
          .top_k = std::max(row.top_k, 0),
          .uniform = UniformFromCounter(row.seed, static_cast<uint64_t>(row.output_index))};
}

}  // namespace

bool IsSampledOnDevice(const SamplingRow& row) { return row.logprobs < 0 && !HasAdjustments(row); }

int64_t StepStaging::BytesFor(int64_t max_rows, int64_t max_samples) {
  return Layout(max_rows, max_samples).bytes;
}

absl::StatusOr<StepStaging> StepStaging::Create(int64_t max_rows, int64_t max_samples) {
  StepStaging staging;
  const auto bytes = static_cast<size_t>(BytesFor(max_rows, max_samples));
  NIBBLE_ASSIGN_OR_RETURN(staging.host_, gpu::PinnedBuffer<uint8_t>::Create(bytes));
  NIBBLE_ASSIGN_OR_RETURN(staging.device_, gpu::DeviceBuffer<uint8_t>::Create(bytes));
  return staging;
}

absl::StatusOr<StepArrays> StepStaging::Upload(const StepPlan& plan, int64_t num_rows,
                                               int64_t num_samples, cudaStream_t stream) {
  const Layout layout(num_rows, num_samples);
  if (layout.bytes > static_cast<int64_t>(host_.size())) {
    return Internal("a step of {} rows and {} samples was not made room for", num_rows,
                    num_samples);
  }
  uint8_t* const host = host_.data();
  Fill(plan.token_ids, num_rows, 0, host + layout.token_ids);
  Fill(plan.positions, num_rows, 0, host + layout.positions);
  Fill(plan.slot_mapping, num_rows, -1, host + layout.slot_mapping);
  Fill(plan.positions, num_rows, -1, host + layout.expert_positions);
  auto* const kept_rows = reinterpret_cast<int32_t*>(host + layout.kept_rows);
  auto* const kept_positions = reinterpret_cast<int32_t*>(host + layout.kept_positions);
  auto* const sampling = reinterpret_cast<kernels::cuda::SampleParams*>(host + layout.sampling);
  for (int64_t i = 0; i < num_samples; ++i) {
    const auto index = static_cast<size_t>(i);
    const bool is_padding = i >= plan.num_samples();
    kept_rows[i] = is_padding ? static_cast<int32_t>(plan.num_tokens() + i - plan.num_samples())
                              : plan.logits_indices[index];
    kept_positions[i] =
        is_padding ? -1 : plan.positions[static_cast<size_t>(plan.logits_indices[index])];
    // A caller of Forward alone has no sampling rows.
    const bool is_sampled = !is_padding && index < plan.sampling.size();
    sampling[i] = is_sampled ? ToParams(plan.sampling[index]) : kernels::cuda::SampleParams{};
  }
  NIBBLE_RETURN_IF_ERROR(
      gpu::CopyToDevice(device_.data(), host, static_cast<size_t>(layout.bytes), stream));
  const uint8_t* const device = device_.data();
  const auto ints = [device](int64_t at) { return reinterpret_cast<const int32_t*>(device + at); };
  return StepArrays{
      .token_ids = ints(layout.token_ids),
      .positions = ints(layout.positions),
      .slot_mapping = ints(layout.slot_mapping),
      .kept_rows = ints(layout.kept_rows),
      .kept_positions = ints(layout.kept_positions),
      .expert_positions = ints(layout.expert_positions),
      .sampling = reinterpret_cast<const kernels::cuda::SampleParams*>(device + layout.sampling)};
}

}  // namespace nibble::engine
