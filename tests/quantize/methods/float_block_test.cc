// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/float_block.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/quantize/methods/block_data.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::quantize {
namespace {

using nibble::testing::AllEqual;
using nibble::testing::AllWithin;
using nibble::testing::Random;
using testing::BlockSizes;
using testing::MakeRope;
using testing::RandomBlock;

std::vector<Isa> HostIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx}) {
    if (isa <= HostCpuFeatures().Best()) isas.push_back(isa);
  }
  return isas;
}

// The layer's equations (calibration_data.h) in double, token by token.
class PlainBlock {
 public:
  PlainBlock(const BlockWeights& weights, const BlockSettings& settings)
      : w_(weights), settings_(settings) {}

  std::vector<double> Forward(const std::vector<float>& x, int64_t num_tokens) const {
    const auto hidden = static_cast<int64_t>(w_.input_norm.size());
    const AttentionShape& shape = settings_.attention;
    std::vector<std::vector<double>> keys;
    std::vector<std::vector<double>> values;
    std::vector<double> y;
    for (int64_t t = 0; t < num_tokens; ++t) {
      std::vector<double> stream(x.begin() + t * hidden, x.begin() + (t + 1) * hidden);
      const std::vector<double> a = Norm(stream, w_.input_norm);
      std::vector<double> q = Heads(Multiply(w_.q, a), w_.q_norm, t);
      keys.push_back(Heads(Multiply(w_.k, a), w_.k_norm, t));
      values.push_back(Multiply(w_.v, a));
      std::vector<double> out(q.size());
      for (int64_t head = 0; head < shape.num_heads; ++head) {
        AttendHead(head, t, q, keys, values, &out);
      }
      Add(Multiply(w_.o, out), &stream);
      const std::vector<double> b = Norm(stream, w_.post_attention_norm);
      Add(w_.moe ? Mixture(b) : Network(w_, b), &stream);
      y.insert(y.end(), stream.begin(), stream.end());
    }
    return y;
  }

 private:
  static std::vector<double> Network(const FeedForward& weights, const std::vector<double>& b) {
    std::vector<double> gate = Multiply(weights.gate, b);
    const std::vector<double> up = Multiply(weights.up, b);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
    return Multiply(weights.down, gate);
  }
  std::vector<double> Mixture(const std::vector<double>& b) const {
    const MoeWeights& moe = *w_.moe;
    std::vector<double> p = Multiply(moe.router, b);
    double all = 0.0;
    for (double& value : p) all += value = std::exp(value);
    std::vector<double> falling = p;
    std::sort(falling.rbegin(), falling.rend());
    falling.resize(static_cast<size_t>(moe.num_experts_per_tok));
    double chosen = 0.0;
    for (const double value : falling) chosen += value;
    std::vector<double> y(b.size());
    const auto add = [&](const FeedForward& expert, double weight) {
      const std::vector<double> out = Network(expert, b);
      for (size_t i = 0; i < y.size(); ++i) y[i] += weight * out[i];
    };
    for (size_t e = 0; e < p.size(); ++e) {
      if (p[e] < falling.back()) continue;
      add(moe.experts[e], p[e] / (moe.norm_topk_prob ? chosen : all));
    }
    if (moe.has_shared()) {
      add(moe.experts.back(), 1.0 / (1.0 + std::exp(-Multiply(moe.shared_gate, b)[0])));
    }
    return y;
  }
  static void Add(const std::vector<double>& x, std::vector<double>* sum) {
    for (size_t i = 0; i < x.size(); ++i) (*sum)[i] += x[i];
  }
  static std::vector<double> Multiply(const Matrix& matrix, const std::vector<double>& x) {
    std::vector<double> y(matrix.bias.begin(), matrix.bias.end());
    y.resize(static_cast<size_t>(matrix.n));
    for (size_t i = 0; i < matrix.weight.size(); ++i) {
      y[i / x.size()] += static_cast<double>(matrix.weight[i]) * x[i % x.size()];
    }
    return y;
  }
  std::vector<double> Norm(const std::vector<double>& x, const std::vector<float>& weight) const {
    double sum = 0.0;
    for (const double value : x) sum += value * value;
    std::vector<double> y;
    for (size_t i = 0; i < x.size(); ++i) {
      y.push_back(x[i] * weight[i] /
                  std::sqrt(sum / static_cast<double>(x.size()) + settings_.rms_norm_eps));
    }
    return y;
  }
  // q_norm or k_norm, then RoPE.
  std::vector<double> Heads(const std::vector<double>& rows, const std::vector<float>& norm,
                            int64_t position) const {
    std::vector<double> out;
    const auto dim = static_cast<size_t>(settings_.attention.head_dim);
    for (size_t begin = 0; begin < rows.size(); begin += dim) {
      std::vector<double> head(rows.begin() + static_cast<int64_t>(begin),
                               rows.begin() + static_cast<int64_t>(begin + dim));
      if (!norm.empty()) head = Norm(head, norm);
      for (size_t i = 0; i < dim; ++i) {
        const size_t half = dim / 2;
        const double angle = static_cast<double>(position) *
                             std::pow(10000.0, -2.0 * static_cast<double>(i % half) / dim);
        const double other = i < half ? -head[i + half] : head[i - half];
        out.push_back(head[i] * std::cos(angle) + other * std::sin(angle));
      }
    }
    return out;
  }
  void AttendHead(int64_t head, int64_t t, const std::vector<double>& q,
                  const std::vector<std::vector<double>>& keys,
                  const std::vector<std::vector<double>>& values, std::vector<double>* out) const {
    const AttentionShape& shape = settings_.attention;
    const int64_t dim = shape.head_dim;
    const int64_t kv = head / (shape.num_heads / shape.num_kv_heads);
    const int64_t first =
        settings_.sliding_window > 0 ? std::max<int64_t>(0, t - settings_.sliding_window + 1) : 0;
    double sum = 0.0;
    for (int64_t s = first; s <= t; ++s) {
      double score = 0.0;
      for (int64_t d = 0; d < dim; ++d) {
        score += q[static_cast<size_t>(head * dim + d)] *
                 keys[static_cast<size_t>(s)][static_cast<size_t>(kv * dim + d)];
      }
      const double p = std::exp(score / std::sqrt(static_cast<double>(dim)));
      sum += p;
      for (int64_t d = 0; d < dim; ++d) {
        (*out)[static_cast<size_t>(head * dim + d)] +=
            p * values[static_cast<size_t>(s)][static_cast<size_t>(kv * dim + d)];
      }
    }
    for (int64_t d = 0; d < dim; ++d) (*out)[static_cast<size_t>(head * dim + d)] /= sum;
  }

  const BlockWeights& w_;
  BlockSettings settings_;
};

struct Case {
  std::string name;
  BlockSizes sizes;
  int64_t sliding_window = 0;
};

std::vector<Case> Cases() {
  return {
      {.name = "llama", .sizes = {}},
      {.name = "biases", .sizes = {.biases = true}},
      {.name = "qk_norms", .sizes = {.qk_norms = true}},
      {.name = "window", .sizes = {}, .sliding_window = 5},
      {.name = "multi_query",
       .sizes = {.attention = {.num_heads = 3, .num_kv_heads = 1, .head_dim = 8},
                 .hidden = 20,
                 .ffn = 28}},
      {.name = "experts", .sizes = {.experts = 4}},
      {.name = "experts_all_chosen", .sizes = {.experts = 3, .experts_per_tok = 3}},
      {.name = "experts_probabilities",
       .sizes = {.experts = 5, .experts_per_tok = 2, .norm_topk_prob = false}},
      {.name = "shared_expert",
       .sizes = {.experts = 4, .experts_per_tok = 1, .norm_topk_prob = false, .shared_ffn = 24}},
      {.name = "multi_head",
       .sizes = {.attention = {.num_heads = 2, .num_kv_heads = 2, .head_dim = 64},
                 .hidden = 64,
                 .ffn = 96}}};
}

struct Part {
  const char* name;
  std::vector<float> BlockNorms::*member;
};
constexpr Part kParts[] = {{"input", &BlockNorms::input},
                           {"post_attention", &BlockNorms::post_attention},
                           {"q", &BlockNorms::q},
                           {"k", &BlockNorms::k}};

double Largest(const std::vector<float>& values) {
  double largest = 0.0;
  for (const float value : values)
    largest = std::max(largest, std::abs(static_cast<double>(value)));
  return largest;
}

class FloatBlockTest : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr int64_t kNumTokens = 13;

  FloatBlockTest()
      : rope_(MakeRope(GetParam().sizes, kNumTokens)),
        weights_(RandomBlock(GetParam().sizes, 1)),
        x_(Random(2).Normals(kNumTokens * GetParam().sizes.hidden)) {}

  BlockSettings Settings(Isa isa) const {
    return {.attention = GetParam().sizes.attention,
            .sliding_window = GetParam().sliding_window,
            .rope = &rope_,
            .isa = isa};
  }
  FloatBlock Create(Isa isa, Gradient gradient) {
    auto block = FloatBlock::Create(weights_, Settings(isa), gradient, &pool_);
    EXPECT_TRUE(block.ok()) << block.status();
    return std::move(block).value();
  }

  ThreadPool pool_{1};
  const kernels::RopeTable rope_;
  BlockWeights weights_;
  const std::vector<float> x_;
};

TEST_P(FloatBlockTest, ComputesTheLayersEquations) {
  const std::vector<double> expected =
      PlainBlock(weights_, Settings(Isa::kRef)).Forward(x_, kNumTokens);
  const int64_t hidden = GetParam().sizes.hidden;
  for (const Isa isa : HostIsas()) {
    SCOPED_TRACE(ToString(isa));
    const FloatBlock block = Create(isa, Gradient::kNone);
    BlockTrace trace;
    ASSERT_TRUE(block.Forward(x_.data(), kNumTokens, &trace, &pool_).ok());
    const std::vector<double> actual(trace.y.begin(), trace.y.end());
    // Outputs are of size 1; a few sums of at most 100 products in float.
    EXPECT_TRUE(AllWithin<double>({actual.data(), kNumTokens, hidden, hidden},
                                  {expected.data(), kNumTokens, hidden, hidden},
                                  [](int64_t, int64_t) { return 2e-5; }));
  }
}

// Backward against central differences of sum(direction * y) by every norm weight.
TEST_P(FloatBlockTest, GradientIsTheSlope) {
  const std::vector<float> direction = Random(3).Normals(static_cast<int64_t>(x_.size()));
  FloatBlock block = Create(HostCpuFeatures().Best(), Gradient::kNorms);
  BlockTrace trace;
  const auto loss = [&] {
    EXPECT_TRUE(block.Forward(x_.data(), kNumTokens, &trace, &pool_).ok());
    double sum = 0.0;
    for (size_t i = 0; i < x_.size(); ++i) sum += static_cast<double>(direction[i]) * trace.y[i];
    return sum;
  };
  loss();
  const BlockNorms gradient = block.Backward(trace, direction.data(), &pool_);
  for (const Part& part : kParts) {
    std::vector<float>& weights = block.norms.*part.member;
    const std::vector<float>& slopes = gradient.*part.member;
    ASSERT_EQ(weights.size(), slopes.size()) << part.name;
    for (size_t i = 0; i < weights.size(); ++i) {
      const float weight = weights[i];
      constexpr float kStep = 0x1p-7F;
      weights[i] = weight + kStep;
      const double above = loss();
      weights[i] = weight - kStep;
      const double below = loss();
      weights[i] = weight;
      // Third derivatives times 2^-14, and float rounding of y over 2^-6.
      EXPECT_NEAR(slopes[i], (above - below) / (2.0 * kStep), 3e-3 * Largest(slopes) + 2e-3)
          << part.name << "[" << i << "]";
    }
  }
}

TEST_P(FloatBlockTest, InstructionSetsAgreeOnTheGradient) {
  const std::vector<float> dy = Random(3).Normals(static_cast<int64_t>(x_.size()));
  std::vector<BlockNorms> gradients;
  for (const Isa isa : HostIsas()) {
    const FloatBlock block = Create(isa, Gradient::kNorms);
    BlockTrace trace;
    ASSERT_TRUE(block.Forward(x_.data(), kNumTokens, &trace, &pool_).ok());
    gradients.push_back(block.Backward(trace, dy.data(), &pool_));
    for (const Part& part : kParts) {
      const std::vector<float>& expected = gradients.front().*part.member;
      const std::vector<float>& actual = gradients.back().*part.member;
      ASSERT_EQ(actual.size(), expected.size());
      for (size_t i = 0; i < actual.size(); ++i) {
        EXPECT_NEAR(actual[i], expected[i], 2e-5 * Largest(expected))
            << ToString(isa) << " " << part.name << "[" << i << "]";
      }
    }
  }
}

TEST_P(FloatBlockTest, ThreadsDoNotChangeABit) {
  const std::vector<float> dy = Random(4).Normals(static_cast<int64_t>(x_.size()));
  std::vector<std::vector<float>> results;
  for (const int num_threads : {1, 4}) {
    ThreadPool pool(num_threads);
    const FloatBlock block = Create(HostCpuFeatures().Best(), Gradient::kNorms);
    BlockTrace trace;
    ASSERT_TRUE(block.Forward(x_.data(), kNumTokens, &trace, &pool).ok());
    const BlockNorms gradient = block.Backward(trace, dy.data(), &pool);
    std::vector<float> all = trace.y;
    for (const Part& part : kParts) {
      all.insert(all.end(), (gradient.*part.member).begin(), (gradient.*part.member).end());
    }
    results.push_back(std::move(all));
  }
  const auto count = static_cast<int64_t>(results[0].size());
  EXPECT_TRUE(
      AllEqual<float>({results[1].data(), 1, count, count}, {results[0].data(), 1, count, count}));
}

// Rounding of activations moves the output by its own size and no more, and the gradient stays the
// one of the float block, or nearly: straight-through.
TEST_P(FloatBlockTest, Int8ActivationsAreCloseAndTheGradientPassesThrough) {
  BlockSettings settings = Settings(HostCpuFeatures().Best());
  const FloatBlock plain = Create(settings.isa, Gradient::kNorms);
  settings.activation_bits = 8;
  auto rounded = FloatBlock::Create(weights_, settings, Gradient::kNorms, &pool_);
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  BlockTrace plain_trace;
  BlockTrace rounded_trace;
  ASSERT_TRUE(plain.Forward(x_.data(), kNumTokens, &plain_trace, &pool_).ok());
  ASSERT_TRUE(rounded->Forward(x_.data(), kNumTokens, &rounded_trace, &pool_).ok());
  double error = 0.0;
  double size = 0.0;
  for (size_t i = 0; i < x_.size(); ++i) {
    error += std::pow(rounded_trace.y[i] - plain_trace.y[i], 2);
    size += std::pow(plain_trace.y[i] - x_[i], 2);
  }
  EXPECT_GT(error, 1e-6 * size);
  EXPECT_LT(error, 1e-3 * size);
  const std::vector<float> dy = Random(5).Normals(static_cast<int64_t>(x_.size()));
  const BlockNorms a = plain.Backward(plain_trace, dy.data(), &pool_);
  const BlockNorms b = rounded->Backward(rounded_trace, dy.data(), &pool_);
  for (size_t i = 0; i < a.input.size(); ++i) EXPECT_NEAR(a.input[i], b.input[i], 1.0) << i;
}

INSTANTIATE_TEST_SUITE_P(Shapes, FloatBlockTest, ::testing::ValuesIn(Cases()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST(FloatBlockErrorTest, SizesAreChecked) {
  ThreadPool pool(1);
  const BlockSizes sizes;
  const kernels::RopeTable rope = MakeRope(sizes, 4);
  const BlockSettings settings = {.attention = sizes.attention, .rope = &rope};
  BlockWeights weights = RandomBlock(sizes, 1);
  {
    auto block = FloatBlock::Create(weights, settings, Gradient::kNone, &pool);
    ASSERT_TRUE(block.ok()) << block.status();
    BlockTrace trace;
    const std::vector<float> x(static_cast<size_t>(5 * sizes.hidden));
    EXPECT_TRUE(block->Forward(x.data(), 4, &trace, &pool).ok());
    EXPECT_TRUE(block->Forward(x.data(), 0, &trace, &pool).ok());
    EXPECT_TRUE(trace.y.empty());
    const absl::Status status = block->Forward(x.data(), 5, &trace, &pool);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(status.message()), "5 tokens, the RoPE table has 4 positions");
  }
  weights.o.k += 1;
  EXPECT_EQ(FloatBlock::Create(weights, settings, Gradient::kNone, &pool).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble::quantize
