// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/layer_bench.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "bench/cache_fill.h"
#include "bench/layer_rig.h"
#include "bench/limits.h"
#include "bench/report.h"
#include "bench/roofline.h"
#include "bench/timing.h"

namespace nibble::bench {
namespace {

struct NamedShape {
  const char* name;
  LayerShape shape;
};
constexpr NamedShape kShapes[] = {
    {"llama-3.2-1b", {2048, 32, 8, 64, 8192}}, {"llama-3.2-3b", {3072, 24, 8, 128, 8192}},
    {"llama-3-8b", {4096, 32, 8, 128, 14336}}, {"llama-3-70b", {8192, 64, 8, 128, 28672}},
    {"qwen2.5-7b", {3584, 28, 4, 128, 18944}}, {"mistral-7b", {4096, 32, 8, 128, 14336}},
};

// What an op must read and compute; 0: not of the kind that has a limit worth naming.
struct Work {
  double bytes = 0.0;
  double ops = 0.0;
  double ops_per_s = 1.0;  // of the unit that computes them
};

Work WorkOf(LayerOp op, const LayerShape& shape, const LayerCase& layer_case,
            const LayerWeights& layer, int64_t cache_bytes_per_token, const Roofline& roofline) {
  const auto product = [&](const engine::Linear& linear) {
    return Work{static_cast<double>(linear.size_bytes()),
                2.0 * static_cast<double>(layer_case.num_rows() * linear.n() * linear.k()),
                linear.takes_int8() ? roofline.int8_op_per_s : roofline.float_flop_per_s};
  };
  switch (op) {
    case LayerOp::kQkv:
      return product(layer.qkv);
    case LayerOp::kO:
      return product(layer.o);
    case LayerOp::kGateUp:
      return product(layer.gate_up);
    case LayerOp::kDown:
      return product(layer.down);
    case LayerOp::kAttention: {
      const auto num_new = static_cast<double>(layer_case.num_new);
      const double pairs = static_cast<double>(layer_case.num_rows()) *
                           (static_cast<double>(layer_case.context) - 0.5 * (num_new - 1.0));
      return {static_cast<double>(layer_case.num_seqs * layer_case.context * cache_bytes_per_token),
              4.0 * pairs * static_cast<double>(shape.num_heads * shape.head_dim),
              roofline.float_flop_per_s};
    }
    default:
      return {};
  }
}

nlohmann::ordered_json Row(const LayerCase& layer_case, std::string_view op, const Timing& timing,
                           double layer_s, const Work& work, double floor_s) {
  nlohmann::ordered_json row = {{"phase", layer_case.num_new > 1 ? "prefill" : "decode"},
                                {"rows", layer_case.num_rows()},
                                {"context", layer_case.context},
                                {"op", std::string(op)},
                                {"median_us", Rounded(timing.median_s * 1e6)},
                                {"best_us", Rounded(timing.best_s * 1e6)},
                                {"share_of_layer", Rounded(timing.median_s / layer_s)}};
  if (work.bytes > 0.0) {
    row["gb_per_s"] = Rounded(work.bytes / timing.median_s * 1e-9);
    row["top_per_s"] = Rounded(work.ops / timing.median_s * 1e-12);
  }
  if (floor_s > 0.0) row["share_of_roofline"] = Rounded(floor_s / timing.median_s);
  return row;
}

struct Subject {
  LayerShape shape;
  DType kv_dtype;
  const std::vector<LayerWeights>& layers;
  Isa isa;
  ThreadPool* pool;
};

absl::Status MeasureCase(const Subject& subject, const LayerCase& layer_case, double min_seconds,
                         const Roofline& roofline, Report* report) {
  NIBBLE_ASSIGN_OR_RETURN(
      LayerStep step, LayerStep::Create(subject.shape, layer_case, subject.kv_dtype, subject.layers,
                                        subject.isa, subject.pool));
  step.Run();  // scratch memory
  std::array<std::vector<double>, kNumLayerOps> op_seconds;
  std::vector<double> layer_seconds;
  const auto num_copies = static_cast<double>(subject.layers.size());
  for (double total = 0.0; layer_seconds.size() < 3 || total < min_seconds;) {
    const std::array<double, kNumLayerOps> seconds = step.Run();
    for (size_t op = 0; op < kNumLayerOps; ++op) op_seconds[op].push_back(seconds[op] / num_copies);
    const double pass = std::accumulate(seconds.begin(), seconds.end(), 0.0);
    layer_seconds.push_back(pass / num_copies);
    total += pass;
  }
  const Timing layer_timing = Summarize(std::move(layer_seconds));
  double layer_floor = 0.0;
  Work layer_work;
  for (size_t i = 0; i < kNumLayerOps; ++i) {
    const auto op = static_cast<LayerOp>(i);
    const Work work = WorkOf(op, subject.shape, layer_case, subject.layers[0],
                             step.cache_bytes_per_token(), roofline);
    const double floor =
        std::max(work.bytes / roofline.read_bytes_per_s, work.ops / work.ops_per_s);
    layer_floor += floor;
    layer_work.bytes += work.bytes;
    layer_work.ops += work.ops;
    report->Add(Row(layer_case, ToString(op), Summarize(std::move(op_seconds[i])),
                    layer_timing.median_s, work, floor));
  }
  report->Add(
      Row(layer_case, "layer", layer_timing, layer_timing.median_s, layer_work, layer_floor));
  return absl::OkStatus();
}

std::vector<LayerCase> Cases(const LayerBenchOptions& options) {
  std::vector<LayerCase> cases;
  for (const int64_t context : options.contexts) {
    for (const int64_t batch : options.batches) {
      cases.push_back({.num_seqs = batch, .num_new = 1, .context = context});
    }
  }
  for (const int64_t prompt : options.prompts) {
    cases.push_back({.num_seqs = 1, .num_new = prompt, .context = prompt});
  }
  return cases;
}

absl::StatusOr<LayerShape> ChooseShape(const LayerBenchOptions& options) {
  if (options.model.empty()) return FindLayerShape(options.shape);
  NIBBLE_ASSIGN_OR_RETURN(const engine::ModelConfig config, engine::LoadModelConfig(options.model));
  return LayerShapeOf(config);
}

}  // namespace

absl::StatusOr<LayerShape> FindLayerShape(const std::string& name) {
  std::vector<std::string_view> names;
  for (const NamedShape& named : kShapes) {
    if (name == named.name) return named.shape;
    names.push_back(named.name);
  }
  return InvalidArgument("--shape is '{}', want {}", name, fmt::join(names, ", "));
}

LayerShape LayerShapeOf(const engine::ModelConfig& config) {
  return {config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim,
          config.intermediate_size};
}

void LayerBenchOptions::Validate(std::vector<std::string>* violations) const {
  if (FindWeightKind(weights) == nullptr) {
    violations->push_back(fmt::format("--weights is '{}', want {}", weights, WeightKindNames()));
  }
  if (!ParseCacheDType(kv_cache_dtype).has_value()) {
    violations->push_back(fmt::format(
        "--kv-cache-dtype is '{}', want float32, bfloat16, float16, int8", kv_cache_dtype));
  }
  CheckLimits("--batch", batches, 1, 4096, violations);
  CheckLimits("--context", contexts, 1, 1 << 20, violations);
  CheckLimits("--prompt", prompts, 2, 1 << 16, violations);
  CheckNumber("--seconds", seconds, 0.0, 3600.0, violations);
}

absl::StatusOr<nlohmann::ordered_json> RunLayerBench(const LayerBenchOptions& options, Isa isa,
                                                     ThreadPool* pool, std::FILE* table) {
  NIBBLE_ASSIGN_OR_RETURN(const LayerShape shape, ChooseShape(options));
  const WeightKind& kind = *FindWeightKind(options.weights);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<LayerWeights> layers,
                          MakeLayerCopies(shape, kind, options.rotated_bytes, isa, pool));
  const Roofline roofline = MeasureRoofline(isa, pool);
  Report report("layer",
                {{"phase", "phase", 8},
                 {"rows", "rows", 6},
                 {"context", "context", 9},
                 {"op", "op", 15},
                 {"median_us", "us", 11, 1},
                 {"share_of_layer", "of layer", 10, 3},
                 {"gb_per_s", "GB/s", 8, 2},
                 {"top_per_s", "TOP/s", 8, 3},
                 {"share_of_roofline", "of roofline", 13, 3}},
                table);
  const Subject subject = {shape, *ParseCacheDType(options.kv_cache_dtype), layers, isa, pool};
  for (const LayerCase& layer_case : Cases(options)) {
    NIBBLE_RETURN_IF_ERROR(MeasureCase(subject, layer_case, options.seconds, roofline, &report));
  }
  return report.Finish(pool->num_threads(), ToJson(roofline),
                       {{"layer",
                         {{"hidden_size", shape.hidden_size},
                          {"heads", shape.num_heads},
                          {"kv_heads", shape.num_kv_heads},
                          {"head_dim", shape.head_dim},
                          {"intermediate_size", shape.intermediate_size},
                          {"weights", options.weights},
                          {"kv_cache_dtype", options.kv_cache_dtype},
                          {"weight_bytes", layers[0].size_bytes()},
                          {"copies", layers.size()}}}});
}

}  // namespace nibble::bench
