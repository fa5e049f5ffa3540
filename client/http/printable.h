// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a server says, fit to be shown in a terminal.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble::client {

// Valid UTF-8 in which control characters, and those that turn the direction of text around, are
// spaces: a terminal would do what they say. Lines and tabs of text that is to be read as it is
// (a model's answer) may stay.
std::string PrintableText(std::string_view text, bool keep_lines = false);

// The same for a message of one line: at most `max_bytes` of `text` and "...".
std::string PrintableMessage(std::string_view text, size_t max_bytes = 300);

}  // namespace nibble::client
