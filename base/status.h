// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Status for everything that a request, a peer, a file or a device can cause. nibble's own code
// throws nothing; exceptions of third-party libraries end at the call. A message carries the value
// and the limit:
//   return InvalidArgument("max_tokens is {}, the limit is {}", value, limit);
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fmt/core.h"

namespace nibble {

template <typename... Args>
absl::Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return absl::NotFoundError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Unimplemented(fmt::format_string<Args...> format, Args&&... args) {
  return absl::UnimplementedError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status ResourceExhausted(fmt::format_string<Args...> format, Args&&... args) {
  return absl::ResourceExhaustedError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return absl::UnavailableError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Internal(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InternalError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status DataLoss(fmt::format_string<Args...> format, Args&&... args) {
  return absl::DataLossError(fmt::format(format, std::forward<Args>(args)...));
}

// The same status with `context` and ": " put in front of its message; OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

}  // namespace nibble

// NOLINTBEGIN(bugprone-macro-parentheses): `lhs` may be a declaration, tokens are pasted.
#define NIBBLE_STATUS_CONCAT_(a, b) a##b
#define NIBBLE_STATUS_CONCAT(a, b) NIBBLE_STATUS_CONCAT_(a, b)

// Returns from the enclosing function when `expr` (an absl::Status) is not OK.
#define NIBBLE_RETURN_IF_ERROR(expr)                                                       \
  do {                                                                                     \
    if (absl::Status nibble_status_ = (expr); !nibble_status_.ok()) return nibble_status_; \
  } while (false)

// NIBBLE_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
#define NIBBLE_ASSIGN_OR_RETURN(lhs, expr) \
  NIBBLE_ASSIGN_OR_RETURN_(NIBBLE_STATUS_CONCAT(nibble_status_or_, __LINE__), lhs, expr)
#define NIBBLE_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = std::move(tmp).value()
// NOLINTEND(bugprone-macro-parentheses)
