// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/check.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace nibble::internal {

void CheckFailed(const char* file, int line, const char* expression, const std::string& operands) {
  std::fprintf(stderr, "%s:%d: check failed: %s%s%s%s\n", file, line, expression,
               operands.empty() ? "" : " (", operands.c_str(), operands.empty() ? "" : ")");
  std::fflush(stderr);
  std::abort();
}

}  // namespace nibble::internal
