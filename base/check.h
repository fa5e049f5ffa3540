// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// CHECK_*: for nibble's own bugs only, never reachable by input. A failed check prints both
// operands and aborts. What input can cause is a Status (base/status.h).
#pragma once

#include "fmt/core.h"

namespace nibble::internal {

[[noreturn]] void CheckFailed(const char* file, int line, const char* expression,
                              const std::string& operands);

}  // namespace nibble::internal

#define NIBBLE_CHECK(condition)                                            \
  do {                                                                     \
    if (!(condition)) [[unlikely]]                                         \
      ::nibble::internal::CheckFailed(__FILE__, __LINE__, #condition, ""); \
  } while (false)

#define NIBBLE_CHECK_OP_(a, op, b)                                                    \
  do {                                                                                \
    const auto& nibble_a_ = (a);                                                      \
    const auto& nibble_b_ = (b);                                                      \
    if (!(nibble_a_ op nibble_b_)) [[unlikely]]                                       \
      ::nibble::internal::CheckFailed(__FILE__, __LINE__, #a " " #op " " #b,          \
                                      fmt::format("{} vs {}", nibble_a_, nibble_b_)); \
  } while (false)

#define NIBBLE_CHECK_EQ(a, b) NIBBLE_CHECK_OP_(a, ==, b)
#define NIBBLE_CHECK_NE(a, b) NIBBLE_CHECK_OP_(a, !=, b)
#define NIBBLE_CHECK_LT(a, b) NIBBLE_CHECK_OP_(a, <, b)
#define NIBBLE_CHECK_LE(a, b) NIBBLE_CHECK_OP_(a, <=, b)
#define NIBBLE_CHECK_GT(a, b) NIBBLE_CHECK_OP_(a, >, b)
#define NIBBLE_CHECK_GE(a, b) NIBBLE_CHECK_OP_(a, >=, b)
