// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Text for the processes that this one starts, longer than an argument can be: a file without a
// name, in memory, that nobody can change and that is gone when this process is.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::cli {

class MemoryFile {
 public:
  // RESOURCE_EXHAUSTED, with the reason, when memory or descriptors are short.
  static absl::StatusOr<std::shared_ptr<const MemoryFile>> Create(std::string_view text);
  ~MemoryFile();

  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  // Where processes of the same user read it, as long as this object lives: "/proc/812/fd/7".
  std::string path() const;

 private:
  explicit MemoryFile(int fd) : fd_(fd) {}

  const int fd_;
};

}  // namespace nibble::cli
