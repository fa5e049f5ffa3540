// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/filters.h"

namespace nibble::server::jinja {

const Filter* FindFilter(std::string_view name) {
  for (const auto& table : {TextFilters(), ValueFilters(), SequenceFilters(), SelectFilters()}) {
    for (const Filter& filter : table) {
      if (filter.name == name) return &filter;
    }
  }
  return nullptr;
}

}  // namespace nibble::server::jinja
