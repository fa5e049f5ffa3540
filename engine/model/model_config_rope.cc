// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/model_config_parts.h"

namespace nibble::engine {
namespace {

using kernels::RopeConfig;

constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e6;
constexpr int64_t kMaxPositions = int64_t{1} << 24;

// One of the two objects, {"rope_type": "llama3", "factor": 8.0, ...}; `theta` is what it
// overrides.
RopeConfig ParseScaling(const nlohmann::json& json, const std::string& where, double theta,
                        int64_t head_dim, ConfigReader* parent) {
  RopeConfig rope = {.rotary_dim = head_dim, .theta = theta};
  ConfigReader reader(json, where);
  for (const char* layer_type : {"full_attention", "sliding_attention"}) {
    if (reader.Has(layer_type)) {
      parent->Fail(
          Unimplemented("{}: parameters per layer type ({}) are not supported", where, layer_type));
      return rope;
    }
  }
  rope.theta = reader.Double("rope_theta", 1.0, kMaxTheta, theta);
  const double partial = reader.Double("partial_rotary_factor", 0.0, 1.0, 1.0);
  if (partial != 1.0) {
    reader.Fail(Unimplemented("{}: partial_rotary_factor {} is not supported (supported: 1)", where,
                              partial));
  }
  // "type" is how early Llama configs spell it.
  const std::string type = reader.String("rope_type", reader.String("type", "default"));
  if (type == "linear") {
    rope.scaling = RopeConfig::Scaling::kLinear;
    rope.factor = reader.Double("factor", 1.0, kMaxFactor);
  } else if (type == "llama3") {
    rope.scaling = RopeConfig::Scaling::kLlama3;
    rope.factor = reader.Double("factor", 1.0, kMaxFactor);
    rope.low_freq_factor = reader.Double("low_freq_factor", 1e-6, kMaxFactor);
    rope.high_freq_factor = reader.Double("high_freq_factor", 1e-6, kMaxFactor);
    rope.original_max_position = reader.Int("original_max_position_embeddings", 1, kMaxPositions);
    if (reader.ok() && rope.high_freq_factor <= rope.low_freq_factor) {
      reader.Fail(InvalidArgument("{}: high_freq_factor {} must exceed low_freq_factor {}", where,
                                  rope.high_freq_factor, rope.low_freq_factor));
    }
  } else if (type != "default") {
    reader.Fail(
        Unimplemented("{}: rope_type {} is not supported (supported: default, linear, llama3)",
                      where, Quote(type)));
  }
  parent->Fail(reader.status());
  return rope;
}

bool Same(const RopeConfig& a, const RopeConfig& b) {
  return a.theta == b.theta && a.scaling == b.scaling && a.factor == b.factor &&
         a.low_freq_factor == b.low_freq_factor && a.high_freq_factor == b.high_freq_factor &&
         a.original_max_position == b.original_max_position;
}

}  // namespace

RopeConfig ParseRope(ConfigReader* reader, double default_theta, int64_t head_dim) {
  const double theta = reader->Double("rope_theta", 1.0, kMaxTheta, default_theta);
  const double partial = reader->Double("partial_rotary_factor", 0.0, 1.0, 1.0);
  if (partial != 1.0) {
    reader->Fail(Unimplemented("{}: partial_rotary_factor {} is not supported (supported: 1)",
                               reader->where(), partial));
  }
  const nlohmann::json* parameters = reader->Object("rope_parameters");
  const nlohmann::json* scaling = reader->Object("rope_scaling");
  RopeConfig rope = {.rotary_dim = head_dim, .theta = theta};
  if (scaling != nullptr) {
    rope = ParseScaling(*scaling, reader->where() + ": rope_scaling", theta, head_dim, reader);
  }
  if (parameters != nullptr) {
    const RopeConfig other =
        ParseScaling(*parameters, reader->where() + ": rope_parameters", theta, head_dim, reader);
    if (scaling != nullptr && !Same(rope, other)) {
      reader->Fail(InvalidArgument("{}: rope_scaling and rope_parameters differ: {} and {}",
                                   reader->where(), Quote(*scaling), Quote(*parameters)));
    }
    rope = other;
  }
  return rope;
}

}  // namespace nibble::engine
