// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Errors that name the request field at fault ("max_tokens"), where one is known.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::server {

// The same status, naming the field. What names one already keeps it.
absl::Status WithParam(absl::Status status, std::string_view param);
std::string ParamOf(const absl::Status& status);  // "" when unknown

}  // namespace nibble::server
