// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/quantization_config.h"

#include <algorithm>

namespace nibble::engine {
namespace {

enum class Specificity { kName, kRegex, kClass };

// What all regular expressions may take for one module: steps times bytes, since a step may look at
// much of its expression. Tens of milliseconds; the steps that it leaves each of 1000 expressions
// of 50 bytes are many times what names of some dozens of characters take.
constexpr int64_t kMaxWork = 50'000'000;
constexpr int64_t kMaxSteps = 100'000;

uint32_t StepsPerMatch(int64_t regex_bytes) {
  return static_cast<uint32_t>(
      std::clamp<int64_t>(kMaxWork / std::max<int64_t>(regex_bytes, 1), 1, kMaxSteps));
}

int64_t RegexBytes(const std::vector<NamePattern>& patterns) {
  int64_t bytes = 0;
  for (const NamePattern& pattern : patterns) {
    if (pattern.is_regex()) bytes += static_cast<int64_t>(pattern.text().size());
  }
  return bytes;
}

absl::StatusOr<bool> Applies(const NamePattern& pattern, Specificity specificity,
                             std::string_view module, std::string_view module_class,
                             uint32_t max_steps) {
  switch (specificity) {
    case Specificity::kName:
      return !pattern.is_regex() && pattern.text() == module;
    case Specificity::kRegex:
      return pattern.is_regex() ? pattern.Matches(module, max_steps) : false;
    case Specificity::kClass:
      return pattern.text() == module_class;
  }
  return false;
}

}  // namespace

std::string Describe(const WeightScheme& scheme) {
  return fmt::format("{}-bit weights {}, {}-bit activations", scheme.weight_bits,
                     scheme.group_size == 0 ? "with one scale per channel"
                                            : fmt::format("in groups of {}", scheme.group_size),
                     scheme.activation_bits);
}

absl::StatusOr<const WeightScheme*> QuantizationConfig::Find(std::string_view module,
                                                             std::string_view module_class) const {
  const uint32_t max_steps = StepsPerMatch(regex_bytes());
  for (const NamePattern& pattern : ignore) {
    NIBBLE_ASSIGN_OR_RETURN(const bool matches, pattern.Matches(module, max_steps));
    if (matches || pattern.text() == module_class) return nullptr;
  }
  for (const Specificity specificity :
       {Specificity::kName, Specificity::kRegex, Specificity::kClass}) {
    const Group* found = nullptr;
    const NamePattern* found_by = nullptr;
    for (const Group& group : groups) {
      for (const NamePattern& target : group.targets) {
        NIBBLE_ASSIGN_OR_RETURN(const bool applies,
                                Applies(target, specificity, module, module_class, max_steps));
        if (!applies) continue;
        if (found != nullptr && found->scheme != group.scheme) {
          return Unimplemented("module '{}' has different schemes by the targets '{}' and '{}'",
                               module, found_by->text(), target.text());
        }
        found = &group;
        found_by = &target;
      }
    }
    if (found != nullptr) return found->scheme ? &*found->scheme : nullptr;
  }
  return nullptr;
}

const WeightScheme* QuantizationConfig::main_scheme() const {
  for (const Group& group : groups) {
    if (group.scheme) return &*group.scheme;
  }
  return nullptr;
}

int QuantizationConfig::min_weight_bits() const {
  int bits = 0;
  for (const Group& group : groups) {
    if (group.scheme && (bits == 0 || group.scheme->weight_bits < bits)) {
      bits = group.scheme->weight_bits;
    }
  }
  return bits;
}

int64_t QuantizationConfig::regex_bytes() const {
  int64_t bytes = RegexBytes(ignore);
  for (const Group& group : groups) bytes += RegexBytes(group.targets);
  return bytes;
}

}  // namespace nibble::engine
