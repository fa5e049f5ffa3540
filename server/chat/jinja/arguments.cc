// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/arguments.h"

#include <algorithm>

namespace nibble::server::jinja {

absl::StatusOr<Bound> Bound::Bind(const Args& args, std::string_view callee, size_t num_required,
                                  std::initializer_list<std::string_view> names) {
  Bound bound;
  bound.callee_ = callee;
  bound.names_ = names;
  bound.values_.resize(names.size(), nullptr);
  if (args.positional.size() > names.size()) {
    return InvalidArgument("{}() takes at most {} arguments ({} given)", bound.callee_,
                           names.size(), args.positional.size());
  }
  for (size_t index = 0; index < args.positional.size(); ++index) {
    bound.values_[index] = &args.positional[index];
  }
  for (const auto& [name, value] : args.named) {
    const auto found = std::find(bound.names_.begin(), bound.names_.end(), name);
    if (found == bound.names_.end()) {
      return InvalidArgument("{}() got an unexpected keyword argument '{}'", bound.callee_, name);
    }
    const Value*& slot = bound.values_[static_cast<size_t>(found - bound.names_.begin())];
    if (slot != nullptr) {
      return InvalidArgument("{}() got multiple values for argument '{}'", bound.callee_, name);
    }
    slot = &value;
  }
  for (size_t index = 0; index < num_required; ++index) {
    if (bound.values_[index] == nullptr) {
      return InvalidArgument("{}() is missing the argument '{}'", bound.callee_,
                             std::string(bound.names_[index]));
    }
  }
  return bound;
}

absl::StatusOr<int64_t> Bound::Integer(size_t index, int64_t otherwise) const {
  if (!Has(index)) return otherwise;
  if (values_[index]->IsInteger()) return values_[index]->integer();
  return InvalidArgument("{}(): '{}' must be an integer, not {}", callee_,
                         std::string(names_[index]), values_[index]->TypeName());
}

absl::StatusOr<std::string_view> Bound::Text(size_t index, std::string_view otherwise) const {
  if (!Has(index)) return otherwise;
  if (values_[index]->IsString()) return std::string_view(values_[index]->text());
  return InvalidArgument("{}(): '{}' must be a string, not {}", callee_, std::string(names_[index]),
                         values_[index]->TypeName());
}

}  // namespace nibble::server::jinja
