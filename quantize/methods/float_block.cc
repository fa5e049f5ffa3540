// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/float_block.h"

#include <cmath>
#include <utility>

#include "base/check.h"
#include "quantize/methods/block_attention.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kRowGrain = 8;
constexpr int64_t kChannelGrain = 64;

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
  return network.down_input;
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
  const LinearSettings linear = {
      .activation_bits = settings.activation_bits, .gradient = gradient, .isa = settings.isa};
  const std::pair<const Matrix*, FloatLinear*> layers[] = {{&weights.q, &block.q_},
                                                           {&weights.k, &block.k_},
                                                           {&weights.v, &block.v_},
                                                           {&weights.o, &block.o_}};
  for (const auto& [matrix, layer] : layers) {
    NIBBLE_ASSIGN_OR_RETURN(*layer, FloatLinear::Create(*matrix, linear, pool));
  }
  if (weights.moe) {
    if (weights.moe->router.k != block.hidden_) {
      return InvalidArgument("a router of {} channels in a block of {}", weights.moe->router.k,
                             block.hidden_);
    }
    NIBBLE_ASSIGN_OR_RETURN(block.moe_, FloatMoe::Create(*weights.moe, linear, pool));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(block.network_, FloatFeedForward::Create(weights, linear, pool));
  }
  return block;
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
  trace->q = q_.Forward(trace->qkv_input, num_tokens, pool);
  trace->k = k_.Forward(trace->qkv_input, num_tokens, pool);
  trace->v = v_.Forward(trace->qkv_input, num_tokens, pool);
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
  trace->middle = o_.Forward(trace->o_input, num_tokens, pool);
  AddTo(trace->x, &trace->middle);

  trace->gate_up_input =
      Normalize(trace->middle, norms.post_attention, settings_.rms_norm_eps, pool);
  trace->y = moe_ ? moe_->Forward(trace->gate_up_input, num_tokens, &trace->moe, pool)
                  : network_.Forward(trace->gate_up_input, num_tokens, &trace->network, pool);
  AddTo(trace->middle, &trace->y);
  return absl::OkStatus();
}

std::vector<float> FloatBlock::AttentionBackward(const BlockTrace& trace,
                                                 const std::vector<float>& d_middle,
                                                 BlockNorms* gradient, ThreadPool* pool) const {
  const AttentionShape& shape = settings_.attention;
  const int64_t num_tokens = trace.num_tokens;
  const std::vector<float> d_out = o_.Backward(d_middle, num_tokens, pool);
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
  std::vector<float> d_input = q_.Backward(dq, num_tokens, pool);
  AddTo(k_.Backward(dk, num_tokens, pool), &d_input);
  AddTo(v_.Backward(dv, num_tokens, pool), &d_input);
  return d_input;
}

BlockNorms FloatBlock::Backward(const BlockTrace& trace, const float* dy, ThreadPool* pool) const {
  NIBBLE_CHECK(o_.has_gradient());
  BlockNorms gradient;
  gradient.input.resize(norms.input.size());
  gradient.post_attention.resize(norms.post_attention.size());
  gradient.q.resize(norms.q.size());
  gradient.k.resize(norms.k.size());
  const int64_t num_tokens = trace.num_tokens;
  std::vector<float> d_middle(dy, dy + num_tokens * hidden_);

  std::vector<float> d_input = moe_ ? moe_->Backward(trace.moe, d_middle, num_tokens, pool)
                                    : network_.Backward(trace.network, d_middle, num_tokens, pool);
  NormalizeBackward(trace.middle, norms.post_attention, settings_.rms_norm_eps, &d_input,
                    &gradient.post_attention, pool);
  AddTo(d_input, &d_middle);

  d_input = AttentionBackward(trace, d_middle, &gradient, pool);
  NormalizeBackward(trace.x, norms.input, settings_.rms_norm_eps, &d_input, &gradient.input, pool);
  return gradient;
}

}  // namespace nibble::quantize
