// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What quantization_config of config.json says of a checkpoint's modules, for all methods alike:
//
//   NIBBLE_ASSIGN_OR_RETURN(const WeightScheme* scheme,
//                           quantization.Find("model.layers.0.mlp.up_proj"));
//   if (scheme == nullptr) ...  // the module is stored plain
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/model/name_pattern.h"

namespace nibble::engine {

enum class WeightLayout {
  kPacked,  // compressed-tensors pack-quantized: weight_packed, eight codes a word along k
  kBytes,   // compressed-tensors int-quantized: weight, one byte a code
  kGptq,    // qweight, eight codes a word along k; qzeros, scales, g_idx
  kAwq,     // qweight, eight codes a word along n; qzeros, scales
};

// How one module is stored, and what activations its author meant for it.
struct WeightScheme {
  WeightLayout layout = WeightLayout::kPacked;
  int weight_bits = 4;         // 4; kBytes also 8
  int64_t group_size = 128;    // input channels per scale; 0: one scale per output channel
  bool symmetric = true;       // kPacked, kBytes: no zero points are stored
  bool act_order = false;      // kPacked: weight_g_idx gives each input channel's group
  bool zeros_less_one = true;  // kGptq: zero points are stored less 1 (version 1)
  int activation_bits = 16;    // 8: int8, dynamic, one scale per token; 16: not quantized

  // Input channels per scale of a module that has `k`; k itself: one scale per output channel.
  int64_t GroupSizeOf(int64_t k) const {
    return group_size == 0 || group_size > k ? k : group_size;
  }
  friend bool operator==(const WeightScheme&, const WeightScheme&) = default;
};

// "4-bit weights in groups of 128, 16-bit activations"
std::string Describe(const WeightScheme& scheme);

struct QuantizationConfig {
  struct Group {
    std::vector<NamePattern> targets;
    std::optional<WeightScheme> scheme;  // nullopt: left plain
  };

  std::string method;  // "compressed-tensors", "gptq", "awq", "auto-round"
  std::vector<Group> groups;
  std::vector<NamePattern> ignore;
  // GPTQ and AWQ files do not name all that they leave plain: a module without qweight is plain.
  bool tensors_decide = false;

  // Regular expressions of a config.json in bytes, all of them together. The more there are, the
  // fewer steps each may take on a name, so that hostile ones cannot hold up loading.
  static constexpr int64_t kMaxRegexBytes = 1 << 18;
  int64_t regex_bytes() const;

  // The scheme of a module, nullptr when it is left plain. A name is more specific than a regular
  // expression, that more than a class; UNIMPLEMENTED when two entries of one kind disagree.
  absl::StatusOr<const WeightScheme*> Find(std::string_view module,
                                           std::string_view module_class = "Linear") const;
  // The scheme of the first group that has one: what a summary tells.
  const WeightScheme* main_scheme() const;
  // The fewest bits of a module that is not left plain; 0 when there is none.
  int min_weight_bits() const;
};

}  // namespace nibble::engine
