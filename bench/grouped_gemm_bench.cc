// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/grouped_gemm_bench.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "nlohmann/json.hpp"

#include "bench/gemm_subject.h"
#include "bench/limits.h"
#include "bench/report.h"
#include "bench/roofline.h"
#include "bench/timing.h"
#include "kernels/gemm/grouped_gemm.h"

namespace nibble::bench {
namespace {

using kernels::GemmDesc;
using kernels::GroupWeight;
using kernels::PackedWeight;

using Weights = std::vector<std::unique_ptr<PackedWeight>>;

// `weights_at_once` random weights after another, until all take rotated_bytes.
absl::StatusOr<Weights> MakeWeights(const GemmDesc& desc, int64_t weights_at_once,
                                    int64_t rotated_bytes, Isa isa, ThreadPool* pool) {
  Weights weights;
  for (int64_t bytes = 0; bytes < rotated_bytes;) {
    for (int64_t i = 0; i < weights_at_once; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(auto weight, PackRandomWeight(desc, isa, pool));
      bytes += static_cast<int64_t>(weight->size_bytes());
      weights.push_back(std::move(weight));
    }
  }
  return weights;
}

// Which rows of A each expert multiplies.
struct Routing {
  std::vector<int32_t> offsets;  // [num_experts + 1]
  std::vector<int32_t> a_rows;   // tokens
  int64_t experts_hit = 0;
};

// expert(token, slot) is the expert of a token's slot.
template <typename Expert>
Routing MakeRouting(const ExpertShape& shape, int64_t tokens, const Expert& expert) {
  std::vector<std::vector<int32_t>> rows(static_cast<size_t>(shape.num_experts));
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t slot = 0; slot < shape.top_k; ++slot) {
      rows[static_cast<size_t>(expert(token, slot))].push_back(static_cast<int32_t>(token));
    }
  }
  Routing routing;
  routing.offsets.push_back(0);
  for (const std::vector<int32_t>& of_expert : rows) {
    routing.a_rows.insert(routing.a_rows.end(), of_expert.begin(), of_expert.end());
    routing.offsets.push_back(static_cast<int32_t>(routing.a_rows.size()));
    if (!of_expert.empty()) ++routing.experts_hit;
  }
  return routing;
}

// One expert after another, beginning with `first`.
Routing EvenRouting(const ExpertShape& shape, int64_t tokens, int64_t first) {
  return MakeRouting(shape, tokens, [&](int64_t token, int64_t slot) {
    return (first + token * shape.top_k + slot) % shape.num_experts;
  });
}

// Random numbers that are the same on every machine.
class RandomRouting {
 public:
  explicit RandomRouting(const ExpertShape& shape)
      : shape_(shape), order_(static_cast<size_t>(shape.num_experts)) {
    std::iota(order_.begin(), order_.end(), int64_t{0});
  }
  Routing Next(int64_t tokens) {
    return MakeRouting(shape_, tokens, [&](int64_t /*token*/, int64_t slot) {
      // The first top_k of a shuffled order: no expert twice for a token.
      const auto from = static_cast<size_t>(slot);
      const size_t left = order_.size() - from;
      std::swap(order_[from], order_[from + Bits() % left]);
      return order_[from];
    });
  }

 private:
  size_t Bits() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<size_t>(state_ >> 33);
  }

  const ExpertShape shape_;
  std::vector<int64_t> order_;
  uint64_t state_ = 1;
};

struct Subject {
  ExpertShape shape;
  Weights experts;  // [layers, num_experts]
  Weights dense;    // copies of [top_k * n, k]
};

int64_t NumLayers(const Subject& subject) {
  return static_cast<int64_t>(subject.experts.size()) / subject.shape.num_experts;
}

std::vector<GroupWeight> LayerWeights(const Subject& subject, int64_t layer) {
  std::vector<GroupWeight> weights;
  for (int64_t e = 0; e < subject.shape.num_experts; ++e) {
    const int64_t i = layer * subject.shape.num_experts + e;
    weights.push_back({subject.experts[static_cast<size_t>(i)].get(), static_cast<int32_t>(e), 0});
  }
  return weights;
}

// What is measured of one number of tokens.
struct Samples {
  std::vector<double> grouped_s;
  std::vector<double> dense_s;
  std::vector<double> random_s;
  int64_t random_hit = 0;  // experts, of all runs
};

Samples TimeTokens(const Subject& subject, int64_t tokens, int64_t rows_per_expert, double seconds,
                   ThreadPool* pool) {
  const ExpertShape& shape = subject.shape;
  std::vector<std::vector<GroupWeight>> layers;
  for (int64_t i = 0; i < NumLayers(subject); ++i) layers.push_back(LayerWeights(subject, i));
  const int64_t rows = tokens * shape.top_k;
  GemmActivations activations(tokens, shape.n, shape.k, pool);
  GemmActivations dense_activations(rows_per_expert, shape.top_k * shape.n, shape.k, pool);
  const kernels::GemmArgs a = activations.args();
  const kernels::GemmArgs dense_args = dense_activations.args();
  std::vector<float> d(static_cast<size_t>(rows * shape.n));
  RandomRouting random_routing(shape);

  Samples samples;
  double total = 0.0;
  for (int64_t i = 0; i < 5 || total < seconds; ++i) {
    // Every layer anew, and with few tokens other experts of it.
    const std::vector<GroupWeight>& layer = layers[static_cast<size_t>(i) % layers.size()];
    const auto run = [&](const Routing& routing) {
      return Seconds([&] {
        kernels::RunGrouped(layer,
                            {.num_groups = shape.num_experts,
                             .offsets = routing.offsets.data(),
                             .a_rows = routing.a_rows.data(),
                             .a = a.a,
                             .a_stride = a.a_stride,
                             .a8 = a.a8,
                             .d = d.data(),
                             .d_stride = shape.n},
                            pool);
      });
    };
    samples.grouped_s.push_back(run(EvenRouting(shape, tokens, i * rows)));
    const PackedWeight& dense = *subject.dense[static_cast<size_t>(i) % subject.dense.size()];
    samples.dense_s.push_back(Seconds([&] { kernels::Run(dense, dense_args, pool); }));
    const Routing random = random_routing.Next(tokens);
    samples.random_hit += random.experts_hit;
    samples.random_s.push_back(run(random));
    total += samples.grouped_s.back() + samples.dense_s.back() + samples.random_s.back();
  }
  return samples;
}

nlohmann::ordered_json MeasureTokens(const Subject& subject, int64_t tokens, double seconds,
                                     ThreadPool* pool) {
  const ExpertShape& shape = subject.shape;
  const int64_t rows = tokens * shape.top_k;
  const int64_t hit = EvenRouting(shape, tokens, 0).experts_hit;
  const int64_t rows_per_expert = (rows + hit - 1) / hit;
  Samples samples = TimeTokens(subject, tokens, rows_per_expert, seconds, pool);
  const Timing grouped = Summarize(std::move(samples.grouped_s));
  const Timing dense = Summarize(std::move(samples.dense_s));
  const Timing random = Summarize(std::move(samples.random_s));
  const double products = static_cast<double>(shape.n * shape.k);
  const double grouped_ops = 2.0 * products * static_cast<double>(rows) / grouped.median_s;
  const double dense_ops =
      2.0 * products * static_cast<double>(shape.top_k * rows_per_expert) / dense.median_s;
  const auto expert_bytes = static_cast<double>(subject.experts[0]->size_bytes());
  const auto dense_bytes = static_cast<double>(subject.dense[0]->size_bytes());
  return {{"shape", shape.name},
          {"variant", subject.experts[0]->variant_name()},
          {"n", shape.n},
          {"k", shape.k},
          {"num_experts", shape.num_experts},
          {"top_k", shape.top_k},
          {"tokens", tokens},
          {"experts_hit", hit},
          {"rows_per_expert", Rounded(static_cast<double>(rows) / static_cast<double>(hit))},
          {"runs", grouped.runs},
          {"grouped_us", Rounded(grouped.median_s * 1e6)},
          {"dense_us", Rounded(dense.median_s * 1e6)},
          {"grouped_gb_per_s",
           Rounded(expert_bytes * static_cast<double>(hit) / grouped.median_s * 1e-9)},
          {"dense_gb_per_s", Rounded(dense_bytes / dense.median_s * 1e-9)},
          {"grouped_top_per_s", Rounded(grouped_ops * 1e-12)},
          {"dense_top_per_s", Rounded(dense_ops * 1e-12)},
          {"share_of_dense", Rounded(grouped_ops / dense_ops)},
          {"random_hit",
           Rounded(static_cast<double>(samples.random_hit) / static_cast<double>(random.runs))},
          {"random_us", Rounded(random.median_s * 1e6)}};
}

absl::StatusOr<Subject> MakeSubject(const ExpertShape& shape, const WeightKind& kind, Isa isa,
                                    int64_t rotated_bytes, ThreadPool* pool) {
  GemmDesc desc = kind.desc;
  desc.n = shape.n;
  desc.k = shape.k;
  Subject subject = {.shape = shape, .experts = {}, .dense = {}};
  NIBBLE_ASSIGN_OR_RETURN(subject.experts,
                          MakeWeights(desc, shape.num_experts, rotated_bytes, isa, pool));
  desc.n = shape.top_k * shape.n;
  NIBBLE_ASSIGN_OR_RETURN(subject.dense, MakeWeights(desc, 1, rotated_bytes, isa, pool));
  return subject;
}

}  // namespace

std::vector<ExpertShape> ModelExpertShapes() {
  return {{"mixtral up", 14336, 4096, 8, 2},
          {"mixtral down", 4096, 14336, 8, 2},
          {"qwen3 up", 768, 2048, 128, 8},
          {"qwen3 down", 2048, 768, 128, 8}};
}

void GroupedGemmBenchOptions::Validate(std::vector<std::string>* violations) const {
  for (const ExpertShape& shape : shapes) {
    CheckLimits("experts of " + shape.name, {shape.num_experts}, 1, 1 << 12, violations);
    CheckLimits("top_k of " + shape.name, {shape.top_k}, 1, std::max<int64_t>(1, shape.num_experts),
                violations);
    CheckLimits("n of " + shape.name, {shape.n}, 1, 1 << 17, violations);
    CheckLimits("k of " + shape.name, {shape.k}, 1, 1 << 17, violations);
  }
  for (const std::string& format : formats) {
    if (FindWeightKind(format) == nullptr) {
      violations->push_back(fmt::format("--format '{}' is none of {}", format, WeightKindNames()));
    }
  }
  CheckLimits("--tokens", tokens, 1, 1 << 14, violations);
  CheckNumber("--seconds", seconds, 0.0, 3600.0, violations);
}

absl::StatusOr<nlohmann::ordered_json> RunGroupedGemmBench(const GroupedGemmBenchOptions& options,
                                                           Isa isa, ThreadPool* pool,
                                                           std::FILE* table) {
  Report report("grouped-gemm",
                {{"shape", "shape", 14},
                 {"variant", "variant", 26},
                 {"tokens", "tokens", 7},
                 {"experts_hit", "hit", 5},
                 {"rows_per_expert", "rows", 7, 1},
                 {"grouped_us", "us", 10, 1},
                 {"grouped_gb_per_s", "GB/s", 8, 2},
                 {"grouped_top_per_s", "TOP/s", 8, 3},
                 {"dense_us", "dense us", 10, 1},
                 {"dense_gb_per_s", "GB/s", 8, 2},
                 {"dense_top_per_s", "TOP/s", 8, 3},
                 {"share_of_dense", "of dense", 9, 3},
                 {"random_hit", "rnd hit", 8, 1},
                 {"random_us", "rnd us", 10, 1}},
                table);
  RooflineMeter meter(pool);
  const nlohmann::ordered_json peaks = {{std::string(ToString(isa)), ToJson(meter.Measure(isa))}};
  bool any = false;
  for (const ExpertShape& shape : options.shapes) {
    if (shape.name.find(options.filter) == std::string::npos) continue;
    any = true;
    for (const std::string& format : options.formats) {
      const WeightKind* kind = FindWeightKind(format);
      if (kind == nullptr) {
        return InvalidArgument("format '{}' is none of {}", format, WeightKindNames());
      }
      NIBBLE_ASSIGN_OR_RETURN(const Subject subject,
                              MakeSubject(shape, *kind, isa, options.rotated_bytes, pool));
      for (const int64_t tokens : options.tokens) {
        report.Add(MeasureTokens(subject, tokens, options.seconds, pool));
      }
    }
  }
  if (!any) return InvalidArgument("--filter '{}' is in no shape's name", options.filter);
  return report.Finish(pool->num_threads(), peaks);
}

}  // namespace nibble::bench
