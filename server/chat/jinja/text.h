// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Python's view of text: code points, white space, case, and how numbers and strings are written.
// All input is valid UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::server::jinja {

int64_t NumChars(std::string_view text);
// The code point at the front of `text`, which is not empty; `length` receives its bytes.
char32_t FrontChar(std::string_view text, size_t* length);
void AppendChar(char32_t point, std::string* out);
// Byte position of code point `index`, text.size() when there are fewer.
size_t ByteOffset(std::string_view text, int64_t index);
std::vector<std::string_view> SplitChars(std::string_view text);

bool IsSpace(char32_t point);
// Removes white space, or the code points of `chars` when it is given, from the chosen ends.
std::string_view Strip(std::string_view text, bool left, bool right);
std::string_view StripChars(std::string_view text, std::string_view chars, bool left, bool right);

// One code point to one code point: the few letters that grow (such as the German sharp s) stay.
std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);
std::string Capitalize(std::string_view text);
// First letter of each run of letters in upper case (Python's str.title).
std::string TitleCase(std::string_view text);
bool IsLetter(char32_t point);
bool IsDecimalDigit(char32_t point);
bool IsUpperCase(char32_t point);
bool IsLowerCase(char32_t point);

std::string FloatRepr(double value);
std::string StringRepr(std::string_view text);
// A JSON string in quotes; `ensure_ascii` writes \uXXXX for everything beyond ASCII.
void AppendJsonString(std::string_view text, bool ensure_ascii, std::string* out);
// & < > ' " as HTML entities.
std::string EscapeHtml(std::string_view text);

}  // namespace nibble::server::jinja
