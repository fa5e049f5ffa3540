// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// UTF-8 as bytes: validation and where characters end.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble {

// True when `text` is well-formed UTF-8 (no overlong forms, surrogates or values above U+10FFFF).
bool IsValidUtf8(std::string_view text);

// Length in bytes of the longest prefix of `text` that does not end inside a character that more
// bytes could still complete. Invalid bytes that can never become a character count as complete.
size_t CompleteUtf8Prefix(std::string_view text);

// Each maximal invalid sequence replaced by U+FFFD, as browsers and Python's errors="replace" do.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace nibble
