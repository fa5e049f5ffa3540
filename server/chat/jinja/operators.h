// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Arithmetic, membership and slices with Python's rules. Integers are 64 bits; what does not fit is
// an error (Python's grow without end).
#pragma once

#include <optional>
#include <string_view>

#include "server/chat/jinja/value.h"

namespace nibble::server::jinja {

// INVALID_ARGUMENT with the message of the undefined value, OK for any other.
absl::Status RequireDefined(const Value& value);

// op: + - * / // % **
absl::StatusOr<Value> Arithmetic(Interpreter& interpreter, std::string_view op, const Value& a,
                                 const Value& b);
absl::StatusOr<Value> Negate(const Value& value);

// item in container
absl::StatusOr<bool> Contains(Interpreter& interpreter, const Value& container, const Value& item);

// value[start:stop:step]
absl::StatusOr<Value> Slice(Interpreter& interpreter, const Value& value,
                            std::optional<int64_t> start, std::optional<int64_t> stop,
                            std::optional<int64_t> step);

// What an unknown attribute or item of `value` yields.
Value MissingFrom(const Value& value, const Value& key);

// len(value)
absl::StatusOr<int64_t> Length(const Value& value);

}  // namespace nibble::server::jinja
