// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/float_feed_forward.h"

namespace nibble::quantize {

absl::StatusOr<FloatFeedForward> FloatFeedForward::Create(const FeedForward& weights,
                                                          const LinearSettings& settings,
                                                          ThreadPool* pool) {
  FloatFeedForward network;
  NIBBLE_ASSIGN_OR_RETURN(network.gate_, FloatLinear::Create(weights.gate, settings, pool));
  NIBBLE_ASSIGN_OR_RETURN(network.up_, FloatLinear::Create(weights.up, settings, pool));
  NIBBLE_ASSIGN_OR_RETURN(network.down_, FloatLinear::Create(weights.down, settings, pool));
  return network;
}

std::vector<float> FloatFeedForward::Forward(const std::vector<float>& x, int64_t num_rows,
                                             FeedForwardTrace* trace, ThreadPool* pool) const {
  trace->gate = gate_.Forward(x, num_rows, pool);
  trace->up = up_.Forward(x, num_rows, pool);
  trace->down_input.resize(trace->gate.size());
  pool->ParallelFor(static_cast<int64_t>(trace->gate.size()), 4096, [&](int64_t b, int64_t e) {
    for (auto i = static_cast<size_t>(b); i < static_cast<size_t>(e); ++i) {
      trace->down_input[i] = trace->gate[i] * Sigmoid(trace->gate[i]) * trace->up[i];
    }
  });
  return down_.Forward(trace->down_input, num_rows, pool);
}

// down(silu(gate) * up): silu'(g) = s (1 + g (1 - s)), s = sigmoid(g)
std::vector<float> FloatFeedForward::Backward(const FeedForwardTrace& trace,
                                              const std::vector<float>& dy, int64_t num_rows,
                                              ThreadPool* pool) const {
  std::vector<float> d_up = down_.Backward(dy, num_rows, pool);
  std::vector<float> d_gate(d_up.size());
  pool->ParallelFor(static_cast<int64_t>(d_up.size()), 4096, [&](int64_t b, int64_t e) {
    for (auto i = static_cast<size_t>(b); i < static_cast<size_t>(e); ++i) {
      const float g = trace.gate[i];
      const float s = Sigmoid(g);
      d_gate[i] = d_up[i] * trace.up[i] * s * (1.0F + g * (1.0F - s));
      d_up[i] *= g * s;
    }
  });
  std::vector<float> dx = gate_.Backward(d_gate, num_rows, pool);
  AddTo(up_.Backward(d_up, num_rows, pool), &dx);
  return dx;
}

}  // namespace nibble::quantize
