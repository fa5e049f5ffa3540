// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/replace_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

namespace nibble::cli {
namespace {

std::string PartialOf(const std::string& path) { return fmt::format("{}.{}", path, getpid()); }

// What is written beside `name`, which is how errors call it: the caller gave that.
absl::Status Write(const std::string& path, const std::string& text, const std::string& name) {
  std::FILE* const file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return Unavailable("{} cannot be written: {}", name, std::strerror(errno));
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) == 0 && written) return absl::OkStatus();
  std::remove(path.c_str());
  return Unavailable("{} cannot be written", name);
}

}  // namespace

absl::Status ReplaceFile(const std::string& path, const std::string& text) {
  const std::string partial = PartialOf(path);
  NIBBLE_RETURN_IF_ERROR(Write(partial, text, path));
  if (std::rename(partial.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const int error = errno;
  std::remove(partial.c_str());
  return Unavailable("{} cannot be replaced: {}", path, std::strerror(error));
}

absl::Status CheckReplaceable(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return InvalidArgument("{} is a directory, want a file", path);
  }
  const std::string partial = PartialOf(path);
  NIBBLE_RETURN_IF_ERROR(Write(partial, "", path));
  std::remove(partial.c_str());
  return absl::OkStatus();
}

}  // namespace nibble::cli
