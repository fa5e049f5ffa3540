// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the experts of a layer see over the calibration tokens. The Hessians of all experts would be
// many times the layer (8 of 14336 input channels: 13 GB), so the input of the layer's experts is
// kept instead and each expert's statistics are made when its turn has come.
//
// An expert's statistics are of the tokens that the float router sends to it. One that gets too few
// of them is calibrated on all tokens of the layer: what it makes of the others' is nearer to what
// it will see than a Hessian of almost nothing. The shared expert sees all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

struct ExpertStatistics {
  InputStatistics gate_up;
  InputStatistics down;
  int64_t num_tokens = 0;   // that go to the expert
  bool all_tokens = false;  // too few: the statistics are of all tokens
};

struct ExpertInputsOptions {
  int64_t num_tokens = 0;  // that will be added
  // An expert of fewer tokens is calibrated on all. Not tuned: as many as are kept as samples, and
  // a tenth of what a matrix of 4096 channels takes for a Hessian of full rank.
  int64_t min_tokens = 512;
  Isa isa = Isa::kRef;
};

class ExpertInputs {
 public:
  // `pool` outlives it.
  ExpertInputs(const MoeWeights& weights, const ExpertInputsOptions& options, ThreadPool* pool);

  // Rows [num_rows, hidden] that router and experts read.
  void Add(const float* rows, int64_t num_rows);
  // After all tokens were added: which go where.
  absl::Status Route(const MoeWeights& weights);

  // Of expert `expert_idx` of MoeWeights::experts with these floats. INVALID_ARGUMENT for
  // activations that are not finite.
  absl::StatusOr<ExpertStatistics> StatisticsOf(size_t expert_idx, const FeedForward& expert);

 private:
  const int64_t hidden_;
  const int64_t experts_per_tok_;
  const size_t num_routed_;
  const ExpertInputsOptions options_;
  ThreadPool* const pool_;
  int64_t num_added_ = 0;
  AlignedBuffer<float> rows_;                           // [num_tokens, hidden]
  std::vector<std::vector<int32_t>> tokens_of_expert_;  // [num_routed], rising
};

}  // namespace nibble::quantize
