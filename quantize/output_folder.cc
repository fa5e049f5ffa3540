// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/output_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/log.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;

absl::Status Failed(const std::string& path, std::string_view action, const std::string& reason) {
  return Internal("{}: cannot {}: {}", path, action, reason);
}

// Whether `output` may be made or replaced.
absl::Status CheckOutput(const std::string& output, bool overwrite) {
  std::error_code error;
  const fs::file_status status = fs::status(output, error);
  if (status.type() == fs::file_type::not_found) return absl::OkStatus();
  if (status.type() != fs::file_type::directory) {
    return absl::AlreadyExistsError(fmt::format("{}: exists and is not a folder", output));
  }
  const bool empty = fs::is_empty(output, error);
  if (error) return Failed(output, "read", error.message());
  if (empty) return absl::OkStatus();
  if (!overwrite) {
    return absl::AlreadyExistsError(fmt::format(
        "{}: exists and is not empty; choose another folder, or --overwrite to replace a model",
        output));
  }
  if (!fs::exists(output + "/config.json", error)) {
    return absl::AlreadyExistsError(fmt::format(
        "{}: has files but no config.json: not a model, so it is not overwritten", output));
  }
  return absl::OkStatus();
}

// A folder that did not exist, named PREFIX + process id (+ a number), with the user's permissions.
absl::StatusOr<std::string> MakeFolder(const std::string& prefix) {
  for (int i = 0; i < 100; ++i) {
    std::string path = fmt::format("{}-{}", prefix, getpid());
    if (i > 0) path += fmt::format("-{}", i);
    if (mkdir(path.c_str(), 0777) == 0) return path;
    if (errno != EEXIST) return Failed(path, "create", std::strerror(errno));
  }
  return Failed(prefix, "create", "too many leftovers of that name");
}

}  // namespace

absl::StatusOr<OutputFolder> OutputFolder::Create(const std::string& output, bool overwrite) {
  std::error_code error;
  // Without links, "..", and trailing slashes, so that the partial folder is on the same disk.
  fs::path canonical = fs::weakly_canonical(output, error);
  if (error) return Failed(output, "resolve", error.message());
  if (!canonical.has_filename()) canonical = canonical.parent_path();
  if (!canonical.has_filename()) return InvalidArgument("{}: not a folder to write to", output);

  OutputFolder folder;
  folder.output_ = canonical.string();
  NIBBLE_RETURN_IF_ERROR(CheckOutput(folder.output_, overwrite));
  fs::create_directories(canonical.parent_path(), error);
  if (error) return Failed(canonical.parent_path().string(), "create", error.message());
  NIBBLE_ASSIGN_OR_RETURN(folder.path_, MakeFolder(folder.output_ + ".partial"));
  return folder;
}

OutputFolder::OutputFolder(OutputFolder&& other) noexcept
    : output_(std::move(other.output_)), path_(std::exchange(other.path_, {})) {}

OutputFolder::~OutputFolder() {
  if (path_.empty()) return;
  std::error_code error;
  fs::remove_all(path_, error);
  if (error) log::Warning("{}: cannot remove: {}", path_, error.message());
}

absl::Status OutputFolder::WriteFile(std::string_view name, std::string_view content) const {
  const std::string path = fmt::format("{}/{}", path_, name);
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) return Failed(path, "write", std::strerror(errno));
  return absl::OkStatus();
}

absl::Status OutputFolder::CopyFile(const std::string& folder, std::string_view name) const {
  const fs::path from = fs::path(folder) / name;
  std::error_code error;
  if (!fs::exists(from, error)) return absl::OkStatus();
  fs::copy_file(from, fs::path(path_) / name, error);
  if (error) return Failed(from.string(), "copy", error.message());
  return absl::OkStatus();
}

absl::Status OutputFolder::Commit() {
  std::error_code error;
  std::string replaced;
  if (fs::exists(output_, error) && !fs::is_empty(output_, error)) {
    NIBBLE_ASSIGN_OR_RETURN(replaced, MakeFolder(output_ + ".replaced"));
    fs::rename(output_, replaced, error);  // onto the empty folder just made
    if (error) return Failed(output_, "move away", error.message());
  }
  fs::rename(path_, output_, error);
  if (error) {
    const std::string reason = error.message();
    if (!replaced.empty()) fs::rename(replaced, output_, error);
    return Failed(path_, "rename", reason);
  }
  path_.clear();
  if (!replaced.empty()) fs::remove_all(replaced, error);
  if (error) log::Warning("{}: cannot remove: {}", replaced, error.message());
  return absl::OkStatus();
}

}  // namespace nibble::quantize
