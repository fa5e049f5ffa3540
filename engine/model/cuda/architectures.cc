// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/cuda/architectures.h"

#include <algorithm>
#include <charconv>
#include <system_error>

namespace nibble::engine {
namespace {

// "90a-real": machine code, which later devices of the same major version run; without suffix, or
// with "-virtual", PTX too, which all later devices do. 'a' is of one device alone, 'f' of later
// ones of its major version.
bool RunsOn(std::string_view architecture, int sm) {
  int own = 0;
  const char* const end = architecture.data() + architecture.size();
  const auto [rest, error] = std::from_chars(architecture.data(), end, own);
  if (error != std::errc()) return true;
  const std::string_view suffix(rest, static_cast<size_t>(end - rest));
  if (sm == own) return true;
  if (sm < own || suffix.starts_with('a')) return false;
  return sm / 10 == own / 10 || (!suffix.starts_with('f') && suffix != "-real");
}

}  // namespace

bool HasKernelsFor(std::string_view architectures, int sm) {
  for (size_t begin = 0; begin < architectures.size();) {
    const size_t end = std::min(architectures.find(',', begin), architectures.size());
    if (RunsOn(architectures.substr(begin, end - begin), sm)) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace nibble::engine
