// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Binds the arguments of a call to the names of a built-in function's parameters.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "server/chat/jinja/value.h"

namespace nibble::server::jinja {

// Parameters by position, nullptr where the call gave none. Views into the call's Args.
class Bound {
 public:
  static absl::StatusOr<Bound> Bind(const Args& args, std::string_view callee, size_t num_required,
                                    std::initializer_list<std::string_view> names);

  const Value* operator[](size_t index) const { return values_[index]; }
  bool Has(size_t index) const { return values_[index] != nullptr; }
  bool Truth(size_t index, bool otherwise) const {
    return Has(index) ? values_[index]->Truth() : otherwise;
  }
  // An integer, or an error naming the parameter.
  absl::StatusOr<int64_t> Integer(size_t index, int64_t otherwise) const;
  // A view: a copy of an argument would be work that nobody counts.
  absl::StatusOr<std::string_view> Text(size_t index, std::string_view otherwise) const;

 private:
  std::string callee_;
  std::vector<std::string_view> names_;
  std::vector<const Value*> values_;
};

}  // namespace nibble::server::jinja
