// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How long a request's text may get on its way to the model. What a tokenizer's file makes of a
// text may be longer than the text (a byte alphabet, replacements, prefixes), but a file may also
// ask for a factor at each of many steps, and then one short request would fill the memory. So one
// limit, relative to the text of the whole request, holds after (and, where one step can add
// without bound, within) every step of normalizers and pre-tokenizers, however they nest.
#pragma once

#include <cstddef>

#include "base/status.h"

namespace nibble::engine {

class TextLimit {
 public:
  explicit TextLimit(size_t text_bytes)
      : text_bytes_(text_bytes), max_bytes_((text_bytes + kSlack) * kMaxGrowth) {}

  // RESOURCE_EXHAUSTED when a part of the text that has `bytes` now, after what was spent, is more.
  absl::Status Check(size_t bytes) const {
    if (bytes <= max_bytes_ - spent_) return absl::OkStatus();
    return ResourceExhausted(
        "the tokenizer makes {} bytes or more out of a text of {}, the limit is {}", spent_ + bytes,
        text_bytes_, max_bytes_);
  }
  // The same for a part that is done.
  absl::Status Spend(size_t bytes) {
    NIBBLE_RETURN_IF_ERROR(Check(bytes));
    spent_ += bytes;
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kMaxGrowth = 64;
  static constexpr size_t kSlack = 1024;  // short texts may get prefixes

  size_t text_bytes_;
  size_t max_bytes_;
  size_t spent_ = 0;
};

}  // namespace nibble::engine
