// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/float_block.h"

#include <cmath>
#include <utility>

#include "base/check.h"
#include "kernels/quant/quantize_rows.h"
#include "quantize/methods/block_attention.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kRowGrain = 8;
constexpr int64_t kChannelGrain = 64;

size_t Size(int64_t rows, int64_t columns) { return static_cast<size_t>(rows * columns); }

float InverseRms(const float* x, int64_t count, float epsilon) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return static_cast<float>(
      1.0 / std::sqrt(sum / static_cast<double>(count) + static_cast<double>(epsilon)));
}

// y = x / rms(x) * weight for rows of weight.size().
std::vector<float> Normalize(const std::vector<float>& x, const std::vector<float>& weight,
                             float epsilon, ThreadPool* pool) {
  const auto width = static_cast<int64_t>(weight.size());
  std::vector<float> y(x.size());
  pool->ParallelFor(static_cast<int64_t>(x.size()) / width, kRowGrain, [&](int64_t b, int64_t e) {
    for (int64_t row = b; row < e; ++row) {
      const float* source = x.data() + row * width;
      const float inverse = InverseRms(source, width, epsilon);
      for (int64_t i = 0; i < width; ++i) {
        y[static_cast<size_t>(row * width + i)] =
            source[i] * inverse * weight[static_cast<size_t>(i)];
      }
    }
  });
  return y;
}

// Turns *d, the gradient of Normalize's output, into that of its input, and adds what the weight
// gets to *d_weight. With u = x / rms(x):
//   d_weight = sum over rows of d * u
//   dx = (d * weight - u * mean(d * weight * u)) / rms(x)
void NormalizeBackward(const std::vector<float>& x, const std::vector<float>& weight, float epsilon,
                       std::vector<float>* d, std::vector<float>* d_weight, ThreadPool* pool) {
  const auto width = static_cast<int64_t>(weight.size());
  const int64_t num_rows = static_cast<int64_t>(x.size()) / width;
  std::vector<float> inverse(static_cast<size_t>(num_rows));
  std::vector<float> means(static_cast<size_t>(num_rows));
  pool->ParallelFor(num_rows, kRowGrain, [&](int64_t b, int64_t e) {
    for (int64_t row = b; row < e; ++row) {
      const float* source = x.data() + row * width;
      const float* gradient = d->data() + row * width;
      const float scale = InverseRms(source, width, epsilon);
      double sum = 0.0;
      for (int64_t i = 0; i < width; ++i) {
        sum += static_cast<double>(gradient[i] * weight[static_cast<size_t>(i)]) *
               static_cast<double>(source[i] * scale);
      }
      inverse[static_cast<size_t>(row)] = scale;
      means[static_cast<size_t>(row)] = static_cast<float>(sum / static_cast<double>(width));
    }
  });
  pool->ParallelFor(width, kChannelGrain, [&](int64_t b, int64_t e) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const float* source = x.data() + row * width;
      float* gradient = d->data() + row * width;
      const float scale = inverse[static_cast<size_t>(row)];
      const float mean = means[static_cast<size_t>(row)];
      for (int64_t i = b; i < e; ++i) {
        const float u = source[i] * scale;
        (*d_weight)[static_cast<size_t>(i)] += gradient[i] * u;
        gradient[i] = scale * (gradient[i] * weight[static_cast<size_t>(i)] - u * mean);
      }
    }
  });
}

// x as a linear layer of the engine reads it: int8 codes times the scale of their row.
std::vector<float> RoundToInt8(const std::vector<float>& x, int64_t num_rows, Isa isa,
                               ThreadPool* pool) {
  const int64_t k = static_cast<int64_t>(x.size()) / std::max<int64_t>(num_rows, 1);
  std::vector<int8_t> codes(x.size());
  std::vector<float> scales(static_cast<size_t>(num_rows));
  std::vector<int32_t> sums(static_cast<size_t>(num_rows));
  kernels::QuantizeRows(
      x.data(), k, num_rows, k,
      {.values = codes.data(), .scales = scales.data(), .sums = sums.data(), .stride = k}, isa,
      pool);
  std::vector<float> rounded(x.size());
  pool->ParallelFor(num_rows, kRowGrain, [&](int64_t b, int64_t e) {
    for (int64_t i = b * k; i < e * k; ++i) {
      rounded[static_cast<size_t>(i)] =
          static_cast<float>(codes[static_cast<size_t>(i)]) * scales[static_cast<size_t>(i / k)];
    }
  });
  return rounded;
}

std::vector<float> Product(const kernels::PackedWeight& weight, const std::vector<float>& x,
                           int64_t num_rows, const float* bias, ThreadPool* pool) {
  std::vector<float> y(Size(num_rows, weight.desc().n));
  kernels::Run(weight,
               {.m = num_rows,
                .a = x.data(),
                .a_stride = weight.desc().k,
                .bias = bias,
                .d = y.data(),
                .d_stride = weight.desc().n},
               pool);
  return y;
}

void Add(const std::vector<float>& x, std::vector<float>* sum) {
  for (size_t i = 0; i < x.size(); ++i) (*sum)[i] += x[i];
}

float Sigmoid(float x) { return 1.0F / (1.0F + std::exp(-x)); }

std::vector<float> Transposed(const Matrix& matrix) {
  std::vector<float> columns(matrix.weight.size());
  for (int64_t row = 0; row < matrix.n; ++row) {
    for (int64_t j = 0; j < matrix.k; ++j) {
      columns[static_cast<size_t>(j * matrix.n + row)] =
          matrix.weight[static_cast<size_t>(row * matrix.k + j)];
    }
  }
  return columns;
}

}  // namespace

const std::vector<float>& BlockTrace::site_input(Site site) const {
  switch (site) {
    case Site::kQkv:
      return qkv_input;
    case Site::kO:
      return o_input;
    case Site::kGateUp:
      return gate_up_input;
    case Site::kDown:
      break;
  }
  return down_input;
}

absl::StatusOr<FloatBlock::Linear> FloatBlock::Pack(const Matrix& matrix,
                                                    const BlockSettings& settings,
                                                    Gradient gradient, ThreadPool* pool) {
  Linear linear;
  linear.bias = matrix.bias;
  NIBBLE_ASSIGN_OR_RETURN(linear.forward,
                          kernels::PackDense(matrix.weight.data(), DType::kF32, matrix.n, matrix.k,
                                             DType::kF32, settings.isa, pool));
  if (gradient == Gradient::kNorms) {
    const std::vector<float> columns = Transposed(matrix);
    NIBBLE_ASSIGN_OR_RETURN(linear.backward,
                            kernels::PackDense(columns.data(), DType::kF32, matrix.k, matrix.n,
                                               DType::kF32, settings.isa, pool));
  }
  return linear;
}

absl::StatusOr<FloatBlock> FloatBlock::Create(const BlockWeights& weights,
                                              const BlockSettings& settings, Gradient gradient,
                                              ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(ValidateBlock(settings.attention, weights));
  NIBBLE_CHECK(settings.rope != nullptr);
  if (settings.rope->rotary_dim > settings.attention.head_dim) {
    return InvalidArgument("RoPE turns {} channels of heads of {}", settings.rope->rotary_dim,
                           settings.attention.head_dim);
  }
  FloatBlock block;
  block.settings_ = settings;
  block.hidden_ = static_cast<int64_t>(weights.input_norm.size());
  block.norms = {weights.input_norm, weights.post_attention_norm, weights.q_norm, weights.k_norm};
  const std::pair<const Matrix*, Linear*> layers[] = {
      {&weights.q, &block.q_},      {&weights.k, &block.k_},       {&weights.v, &block.v_},
      {&weights.o, &block.o_},      {&weights.gate, &block.gate_}, {&weights.up, &block.up_},
      {&weights.down, &block.down_}};
  for (const auto& [matrix, linear] : layers) {
    NIBBLE_ASSIGN_OR_RETURN(*linear, Pack(*matrix, settings, gradient, pool));
  }
  return block;
}

std::vector<float> FloatBlock::Apply(const Linear& linear, const std::vector<float>& x,
                                     int64_t num_tokens, ThreadPool* pool) const {
  const float* bias = linear.bias.empty() ? nullptr : linear.bias.data();
  if (settings_.activation_bits != 8) return Product(*linear.forward, x, num_tokens, bias, pool);
  return Product(*linear.forward, RoundToInt8(x, num_tokens, settings_.isa, pool), num_tokens, bias,
                 pool);
}

void FloatBlock::Rotate(std::vector<float>* heads, int64_t num_heads, int64_t num_tokens,
                        float direction, ThreadPool* pool) const {
  const kernels::RopeTable& rope = *settings_.rope;
  const int64_t half = rope.rotary_dim / 2;
  pool->ParallelFor(num_tokens * num_heads, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      float* x = heads->data() + head * settings_.attention.head_dim;
      const float* cos = rope.cos.data() + head / num_heads * half;
      const float* sin = rope.sin.data() + head / num_heads * half;
      for (int64_t i = 0; i < half; ++i) {
        const float a = x[i];
        const float b = x[i + half];
        x[i] = a * cos[i] - direction * b * sin[i];
        x[i + half] = b * cos[i] + direction * a * sin[i];
      }
    }
  });
}

void FloatBlock::Attention(BlockTrace* trace, ThreadPool* pool) const {
  const AttentionShape& shape = settings_.attention;
  const int64_t num_tokens = trace->num_tokens;
  trace->q = Apply(q_, trace->qkv_input, num_tokens, pool);
  trace->k = Apply(k_, trace->qkv_input, num_tokens, pool);
  trace->v = Apply(v_, trace->qkv_input, num_tokens, pool);
  trace->q_plain.clear();
  trace->k_plain.clear();
  if (!norms.q.empty()) {
    trace->q_plain = std::move(trace->q);
    trace->q = Normalize(trace->q_plain, norms.q, settings_.rms_norm_eps, pool);
  }
  if (!norms.k.empty()) {
    trace->k_plain = std::move(trace->k);
    trace->k = Normalize(trace->k_plain, norms.k, settings_.rms_norm_eps, pool);
  }
  Rotate(&trace->q, shape.num_heads, num_tokens, 1.0F, pool);
  Rotate(&trace->k, shape.num_kv_heads, num_tokens, 1.0F, pool);
  trace->o_input.resize(trace->q.size());
  Attend({.num_tokens = num_tokens,
          .num_heads = shape.num_heads,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .sliding_window = settings_.sliding_window,
          .q = trace->q.data(),
          .k = trace->k.data(),
          .v = trace->v.data()},
         trace->o_input.data(), pool);
}

absl::Status FloatBlock::Forward(const float* x, int64_t num_tokens, BlockTrace* trace,
                                 ThreadPool* pool) const {
  if (num_tokens < 0 || num_tokens > settings_.rope->max_positions) {
    return InvalidArgument("{} tokens, the RoPE table has {} positions", num_tokens,
                           settings_.rope->max_positions);
  }
  trace->num_tokens = num_tokens;
  trace->x.assign(x, x + num_tokens * hidden_);
  trace->qkv_input = Normalize(trace->x, norms.input, settings_.rms_norm_eps, pool);
  Attention(trace, pool);
  trace->middle = Apply(o_, trace->o_input, num_tokens, pool);
  Add(trace->x, &trace->middle);

  trace->gate_up_input =
      Normalize(trace->middle, norms.post_attention, settings_.rms_norm_eps, pool);
  trace->gate = Apply(gate_, trace->gate_up_input, num_tokens, pool);
  trace->up = Apply(up_, trace->gate_up_input, num_tokens, pool);
  trace->down_input.resize(trace->gate.size());
  pool->ParallelFor(static_cast<int64_t>(trace->gate.size()), 4096, [&](int64_t b, int64_t e) {
    for (auto i = static_cast<size_t>(b); i < static_cast<size_t>(e); ++i) {
      trace->down_input[i] = trace->gate[i] * Sigmoid(trace->gate[i]) * trace->up[i];
    }
  });
  trace->y = Apply(down_, trace->down_input, num_tokens, pool);
  Add(trace->middle, &trace->y);
  return absl::OkStatus();
}

std::vector<float> FloatBlock::AttentionBackward(const BlockTrace& trace,
                                                 const std::vector<float>& d_middle,
                                                 BlockNorms* gradient, ThreadPool* pool) const {
  const AttentionShape& shape = settings_.attention;
  const int64_t num_tokens = trace.num_tokens;
  const std::vector<float> d_out = Product(*o_.backward, d_middle, num_tokens, nullptr, pool);
  std::vector<float> dq(trace.q.size());
  std::vector<float> dk(trace.k.size());
  std::vector<float> dv(trace.v.size());
  AttendBackward({.num_tokens = num_tokens,
                  .num_heads = shape.num_heads,
                  .num_kv_heads = shape.num_kv_heads,
                  .head_dim = shape.head_dim,
                  .sliding_window = settings_.sliding_window,
                  .q = trace.q.data(),
                  .k = trace.k.data(),
                  .v = trace.v.data()},
                 d_out.data(), {.q = dq.data(), .k = dk.data(), .v = dv.data()}, pool);
  Rotate(&dq, shape.num_heads, num_tokens, -1.0F, pool);
  Rotate(&dk, shape.num_kv_heads, num_tokens, -1.0F, pool);
  const float epsilon = settings_.rms_norm_eps;
  if (!norms.q.empty()) {
    NormalizeBackward(trace.q_plain, norms.q, epsilon, &dq, &gradient->q, pool);
  }
  if (!norms.k.empty()) {
    NormalizeBackward(trace.k_plain, norms.k, epsilon, &dk, &gradient->k, pool);
  }
  std::vector<float> d_input = Product(*q_.backward, dq, num_tokens, nullptr, pool);
  Add(Product(*k_.backward, dk, num_tokens, nullptr, pool), &d_input);
  Add(Product(*v_.backward, dv, num_tokens, nullptr, pool), &d_input);
  return d_input;
}

BlockNorms FloatBlock::Backward(const BlockTrace& trace, const float* dy, ThreadPool* pool) const {
  NIBBLE_CHECK(down_.backward != nullptr);
  BlockNorms gradient;
  gradient.input.resize(norms.input.size());
  gradient.post_attention.resize(norms.post_attention.size());
  gradient.q.resize(norms.q.size());
  gradient.k.resize(norms.k.size());
  const int64_t num_tokens = trace.num_tokens;
  std::vector<float> d_middle(dy, dy + num_tokens * hidden_);

  // down(silu(gate) * up): silu'(g) = s (1 + g (1 - s)), s = sigmoid(g)
  std::vector<float> d_up = Product(*down_.backward, d_middle, num_tokens, nullptr, pool);
  std::vector<float> d_gate(d_up.size());
  pool->ParallelFor(static_cast<int64_t>(d_up.size()), 4096, [&](int64_t b, int64_t e) {
    for (auto i = static_cast<size_t>(b); i < static_cast<size_t>(e); ++i) {
      const float g = trace.gate[i];
      const float s = Sigmoid(g);
      d_gate[i] = d_up[i] * trace.up[i] * s * (1.0F + g * (1.0F - s));
      d_up[i] *= g * s;
    }
  });
  std::vector<float> d_input = Product(*gate_.backward, d_gate, num_tokens, nullptr, pool);
  Add(Product(*up_.backward, d_up, num_tokens, nullptr, pool), &d_input);
  NormalizeBackward(trace.middle, norms.post_attention, settings_.rms_norm_eps, &d_input,
                    &gradient.post_attention, pool);
  Add(d_input, &d_middle);

  d_input = AttentionBackward(trace, d_middle, &gradient, pool);
  NormalizeBackward(trace.x, norms.input, settings_.rms_norm_eps, &d_input, &gradient.input, pool);
  return gradient;
}

}  // namespace nibble::quantize
