// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/quantization_config.h"

namespace nibble::engine {
namespace {

enum class Specificity { kName, kRegex, kClass };

absl::StatusOr<bool> Applies(const NamePattern& pattern, Specificity specificity,
                             std::string_view module, std::string_view module_class) {
  switch (specificity) {
    case Specificity::kName:
      return !pattern.is_regex() && pattern.text() == module;
    case Specificity::kRegex:
      return pattern.is_regex() ? pattern.Matches(module) : false;
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
  for (const NamePattern& pattern : ignore) {
    NIBBLE_ASSIGN_OR_RETURN(const bool matches, pattern.Matches(module));
    if (matches || pattern.text() == module_class) return nullptr;
  }
  for (const Specificity specificity :
       {Specificity::kName, Specificity::kRegex, Specificity::kClass}) {
    const Group* found = nullptr;
    const NamePattern* found_by = nullptr;
    for (const Group& group : groups) {
      for (const NamePattern& target : group.targets) {
        NIBBLE_ASSIGN_OR_RETURN(const bool applies,
                                Applies(target, specificity, module, module_class));
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

}  // namespace nibble::engine
