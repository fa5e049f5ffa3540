// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The tests of Jinja (`x is defined`), by name.
#pragma once

#include <string_view>

#include "server/chat/jinja/value.h"

namespace nibble::server::jinja {

struct Test {
  std::string_view name;
  absl::StatusOr<bool> (*holds)(Interpreter&, const Value& input, const Args&);
};

// nullptr when there is none.
const Test* FindTest(std::string_view name);

}  // namespace nibble::server::jinja
