// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/moe_bench.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "bench/limits.h"
#include "bench/report.h"
#include "bench/roofline.h"
#include "bench/timing.h"

namespace nibble::bench {
namespace {

const MoeShape* FindShape(const std::string& name) {
  for (const MoeShape& shape : MoeShapes()) {
    if (shape.name == name) return &shape;
  }
  return nullptr;
}

std::string ShapeNames() {
  std::vector<std::string_view> names;
  for (const MoeShape& shape : MoeShapes()) names.push_back(shape.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// Seconds that reading and computing take at least.
struct Work {
  double bytes = 0.0;
  double ops = 0.0;
  double Floor(const Roofline& roofline, double ops_per_s) const {
    return std::max(bytes / roofline.read_bytes_per_s, ops / ops_per_s);
  }
};

struct Measured {
  Timing moe;
  Timing dense;
  std::array<Timing, kNumMoeOps> ops;
  double experts_hit = 0.0;
};

Measured MeasureTokens(int64_t tokens, double min_seconds, MoeRig* rig) {
  rig->Prepare(tokens);
  int64_t hit = 0;
  rig->RunMoe(&hit);  // scratch memory
  rig->RunDense();
  std::vector<double> moe;
  std::vector<double> dense;
  int64_t total_hit = 0;
  for (double total = 0.0; moe.size() < 5 || total < min_seconds;) {
    moe.push_back(rig->RunMoe(&hit));
    dense.push_back(rig->RunDense());
    total_hit += hit;
    total += moe.back() + dense.back();
  }
  Measured measured;
  measured.experts_hit = static_cast<double>(total_hit) / static_cast<double>(moe.size());
  std::array<std::vector<double>, kNumMoeOps> ops;
  for (size_t run = 0; run < std::min<size_t>(moe.size(), 50); ++run) {
    const std::array<double, kNumMoeOps> seconds = rig->RunOps();
    for (size_t op = 0; op < kNumMoeOps; ++op) ops[op].push_back(seconds[op]);
  }
  for (size_t op = 0; op < kNumMoeOps; ++op) measured.ops[op] = Summarize(std::move(ops[op]));
  measured.moe = Summarize(std::move(moe));
  measured.dense = Summarize(std::move(dense));
  return measured;
}

// The row that the others are predicted from.
struct Base {
  double seconds = 0.0;
  double experts_hit = 0.0;
};

nlohmann::ordered_json Row(const MoeShape& shape, int64_t tokens, const MoeRig& rig,
                           const Measured& measured, const Base& base, bool takes_int8,
                           const Roofline& roofline) {
  const auto num_tokens = static_cast<double>(tokens);
  const auto num_experts = static_cast<double>(shape.num_experts);
  const auto k = static_cast<double>(shape.num_experts_per_tok);
  const auto hidden = static_cast<double>(shape.hidden_size);
  const double peak = takes_int8 ? roofline.int8_op_per_s : roofline.float_flop_per_s;
  const double ops =
      2.0 * num_tokens * k * 3.0 * hidden * static_cast<double>(shape.intermediate_size);
  const Work experts = {measured.experts_hit * static_cast<double>(rig.expert_bytes()), ops};
  const Work router = {static_cast<double>(rig.router_bytes()),
                       2.0 * num_tokens * num_experts * hidden};
  const Work dense = {static_cast<double>(rig.dense_bytes()), ops};
  const double floor =
      experts.Floor(roofline, peak) + router.Floor(roofline, roofline.float_flop_per_s);
  const double moe_s = measured.moe.median_s;
  const double dense_s = measured.dense.median_s;
  const double bytes_per_s = (experts.bytes + router.bytes) / moe_s;
  const double predicted_s =
      std::max(dense_s, base.seconds * measured.experts_hit / base.experts_hit);
  nlohmann::ordered_json row = {
      {"shape", shape.name},
      {"tokens", tokens},
      {"runs", measured.moe.runs},
      {"moe_us", Rounded(moe_s * 1e6)},
      {"dense_us", Rounded(dense_s * 1e6)},
      {"moe_over_dense", Rounded(moe_s / dense_s)},
      {"best_moe_over_dense", Rounded(measured.moe.best_s / measured.dense.best_s)},
      {"experts_hit", Rounded(measured.experts_hit)},
      {"uniform_hit", Rounded(num_experts * (1.0 - std::pow(1.0 - k / num_experts, num_tokens)))},
      {"gb_per_s", Rounded(bytes_per_s * 1e-9)},
      {"share_of_read", Rounded(bytes_per_s / roofline.read_bytes_per_s)},
      {"dense_gb_per_s", Rounded(dense.bytes / dense_s * 1e-9)},
      {"dense_share_of_read", Rounded(dense.bytes / dense_s / roofline.read_bytes_per_s)},
      {"share_of_roofline", Rounded(floor / moe_s)},
      {"dense_share_of_roofline", Rounded(dense.Floor(roofline, peak) / dense_s)},
      {"tokens_per_s", Rounded(num_tokens / moe_s)},
      {"dense_tokens_per_s", Rounded(num_tokens / dense_s)},
      {"over_predicted", Rounded(moe_s / predicted_s)}};
  for (size_t op = 0; op < kNumMoeOps; ++op) {
    row[std::string(ToString(static_cast<MoeOp>(op))) + "_us"] =
        Rounded(measured.ops[op].median_s * 1e6);
  }
  row["peaks"] = ToJson(roofline);
  return row;
}

}  // namespace

const std::vector<MoeShape>& MoeShapes() {
  static const std::vector<MoeShape> kShapes = {{"mixtral-8x7b", 4096, 14336, 8, 2},
                                                {"qwen3-30b-a3b", 2048, 768, 128, 8},
                                                {"stories-mixtral", 256, 512, 8, 2}};
  return kShapes;
}

void MoeBenchOptions::Validate(std::vector<std::string>* violations) const {
  if (shapes.empty()) violations->push_back("--shape is empty");
  for (const std::string& shape : shapes) {
    if (FindShape(shape) != nullptr) continue;
    violations->push_back(fmt::format("--shape is '{}', want {}", shape, ShapeNames()));
  }
  if (FindWeightKind(weights) == nullptr) {
    violations->push_back(fmt::format("--weights is '{}', want {}", weights, WeightKindNames()));
  }
  CheckLimits("--tokens", tokens, 1, 1 << 14, violations);
  CheckNumber("--seconds", seconds, 0.0, 3600.0, violations);
}

absl::StatusOr<nlohmann::ordered_json> RunMoeBench(const MoeBenchOptions& options, Isa isa,
                                                   ThreadPool* pool, std::FILE* table) {
  Report report("moe",
                {{"shape", "shape", 16},
                 {"tokens", "tokens", 7},
                 {"experts_hit", "hit", 7, 1},
                 {"moe_us", "us", 11, 1},
                 {"share_of_read", "of read", 8, 3},
                 {"share_of_roofline", "of roofline", 12, 3},
                 {"dense_us", "dense us", 11, 1},
                 {"dense_share_of_read", "of read", 8, 3},
                 {"moe_over_dense", "moe/dense", 10, 3},
                 {"over_predicted", "predicted", 10, 3},
                 {"router_us", "router", 8, 1},
                 {"route_us", "route", 8, 1},
                 {"permute_us", "permute", 8, 1},
                 {"combine_us", "combine", 8, 1}},
                table);
  const WeightKind& kind = *FindWeightKind(options.weights);
  const bool takes_int8 = kernels::TakesInt8(kind.desc.format);
  RooflineMeter meter(pool);
  nlohmann::ordered_json members = {{"weights", options.weights}};
  for (const std::string& name : options.shapes) {
    const MoeShape& shape = *FindShape(name);
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<MoeRig> rig,
                            MoeRig::Create(shape, kind, options.rotated_bytes, isa, pool));
    members["shapes"][name] = {{"hidden_size", shape.hidden_size},
                               {"expert_intermediate_size", shape.intermediate_size},
                               {"num_experts", shape.num_experts},
                               {"num_experts_per_tok", shape.num_experts_per_tok},
                               {"expert_bytes", rig->expert_bytes()},
                               {"dense_bytes", rig->dense_bytes()},
                               {"layers", rig->num_layers()},
                               {"dense_layers", rig->num_dense()}};
    Base base;
    for (const int64_t tokens : options.tokens) {
      const Roofline roofline = meter.Measure(isa);
      const Measured measured = MeasureTokens(tokens, options.seconds, rig.get());
      if (base.experts_hit == 0.0) base = {measured.moe.median_s, measured.experts_hit};
      report.Add(Row(shape, tokens, *rig, measured, base, takes_int8, roofline));
    }
  }
  return report.Finish(pool->num_threads(), ToJson(meter.Measure(isa)), members);
}

}  // namespace nibble::bench
