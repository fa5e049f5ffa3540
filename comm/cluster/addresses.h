// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Network addresses as text.
#pragma once

#include <string>

#include "base/status.h"

namespace nibble::comm {

// The first address of a name; a numeric one is itself. UNAVAILABLE when it is not known.
absl::StatusOr<std::string> ToNumeric(const std::string& host);
bool IsNumeric(const std::string& address);
// "0.0.0.0", "::" and whatever else a system takes for them: no peer can be reached there.
bool IsEveryInterface(const std::string& address);

}  // namespace nibble::comm
