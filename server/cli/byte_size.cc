// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/byte_size.h"

#include <charconv>
#include <cmath>

namespace nibble::cli {
namespace {

// What a suffix multiplies by; 0 for what is none.
double FactorOf(std::string_view suffix) {
  if (suffix.empty()) return 1;
  constexpr std::string_view kLetters = "kmgt";
  const bool is_thousands = suffix.size() == 1 && kLetters.find(suffix[0]) != kLetters.npos;
  const bool is_binary = suffix.size() == 1 || (suffix.size() == 3 && suffix.substr(1) == "iB");
  const size_t power =
      is_thousands ? kLetters.find(suffix[0]) : std::string_view("KMGT").find(suffix[0]);
  if (power == std::string_view::npos || !(is_thousands || is_binary)) return 0;
  return std::pow(is_thousands ? 1000.0 : 1024.0, static_cast<double>(power + 1));
}

}  // namespace

absl::StatusOr<int64_t> ParseByteSize(std::string_view text) {
  const auto refuse = [&] {
    return InvalidArgument(
        "'{}' is no size; want bytes, or a number with a suffix as in 4GiB: KiB, MiB, GiB, TiB (or "
        "K, M, G, T) are powers of 1024, k, m, g, t of 1000",
        text);
  };
  const char* const end = text.data() + text.size();
  int64_t bytes = 0;
  if (const auto [rest, error] = std::from_chars(text.data(), end, bytes);
      error == std::errc() && rest == end) {
    return bytes;
  }
  double number = 0;
  const auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  const double factor = FactorOf(std::string_view(rest, static_cast<size_t>(end - rest)));
  constexpr double kLimit = 9e18;
  if (error != std::errc() || factor == 0 || rest == end || !(std::fabs(number * factor) < kLimit))
    return refuse();
  return static_cast<int64_t>(number * factor);
}

}  // namespace nibble::cli
