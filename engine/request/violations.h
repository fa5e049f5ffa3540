// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Collects everything that is wrong with a set of parameters, so that one error names it all.
#pragma once

#include <string>
#include <utility>

#include "base/status.h"

namespace nibble::engine {

class Violations {
 public:
  template <typename... Args>
  void Add(fmt::format_string<Args...> format, Args&&... args) {
    if (!text_.empty()) text_ += "; ";
    text_ += fmt::format(format, std::forward<Args>(args)...);
  }

  // Written so that NaN, which compares false with everything, is outside.
  template <typename T>
  void CheckRange(const char* field, T value, T low, T high) {
    if (!(value >= low && value <= high)) {
      Add("{} is {}, must be in [{}, {}]", field, value, low, high);
    }
  }

  // OK, or INVALID_ARGUMENT with all that was added.
  absl::Status ToStatus() const {
    return text_.empty() ? absl::OkStatus() : InvalidArgument("{}", text_);
  }

 private:
  std::string text_;
};

}  // namespace nibble::engine
