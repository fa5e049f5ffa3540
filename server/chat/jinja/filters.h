// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The filters of Jinja, by name. Each file of filters has its own table; FindFilter asks them all.
#pragma once

#include <span>
#include <string_view>

#include "server/chat/jinja/value.h"

namespace nibble::server::jinja {

struct Filter {
  std::string_view name;
  absl::StatusOr<Value> (*apply)(Interpreter&, const Value& input, const Args&);
};

// nullptr when there is none.
const Filter* FindFilter(std::string_view name);

std::span<const Filter> TextFilters();      // text_filters.cc
std::span<const Filter> ValueFilters();     // value_filters.cc
std::span<const Filter> SequenceFilters();  // sequence_filters.cc
std::span<const Filter> SelectFilters();    // select_filters.cc

}  // namespace nibble::server::jinja
