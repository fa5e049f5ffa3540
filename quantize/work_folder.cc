// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/work_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "base/json.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "quantize/files.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLock = "lock";
constexpr std::string_view kRun = "run.json";
constexpr std::string_view kCalibration = "calibration.ids";
constexpr std::string_view kLayers = "layers";
constexpr std::string_view kUnfinishedLayer = "layer.tmp";
constexpr std::string_view kOutput = "output";
constexpr std::string_view kReplaced = "replaced";

std::string Join(const std::string& folder, std::string_view name) {
  return fmt::format("{}/{}", folder, name);
}

absl::Status Failed(const std::string& path, std::string_view action,
                    const std::error_code& error) {
  return Internal("{}: cannot {}: {}", path, action, error.message());
}

bool Exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

absl::Status RemoveAll(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  return error ? Failed(path, "remove", error) : absl::OkStatus();
}

absl::StatusOr<std::string> MakeEmpty(const std::string& path) {
  NIBBLE_RETURN_IF_ERROR(RemoveAll(path));
  if (mkdir(path.c_str(), 0777) != 0) return ErrnoError(path, "create");
  return path;
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
  if (error) return Failed(output, "read", error);
  if (empty) return absl::OkStatus();
  if (!overwrite) {
    return absl::AlreadyExistsError(fmt::format(
        "{}: exists and is not empty; choose another folder, or --overwrite to replace a model",
        output));
  }
  if (!Exists(output + "/config.json")) {
    return absl::AlreadyExistsError(fmt::format(
        "{}: has files but no config.json: not a model, so it is not overwritten", output));
  }
  return absl::OkStatus();
}

// A folder may be here that has nothing to do with nibble: nothing of it is touched. Until there is
// a run.json, a run makes no more than the lock.
absl::Status CheckOurs(const std::string& path) {
  const std::string unfinished = fmt::format("{}.tmp", kRun);
  std::set<std::string, std::less<>> ours = {std::string(kLock), unfinished};
  const bool described = Exists(Join(path, kRun));
  if (described) {
    ours.insert({std::string(kRun), std::string(kCalibration), fmt::format("{}.tmp", kCalibration),
                 std::string(kLayers), std::string(kUnfinishedLayer), std::string(kOutput),
                 std::string(kReplaced)});
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    const std::string name = entry.path().filename().string();
    if (ours.count(name) > 0) continue;
    return absl::FailedPreconditionError(
        fmt::format("{}: holds '{}'{}, so it is no folder of an unfinished run; move it away", path,
                    name, described ? "" : fmt::format(" and no {}", kRun)));
  }
  return error ? Failed(path, "read", error) : absl::OkStatus();
}

// Text that is not UTF-8 (a path may be anything) has its invalid bytes replaced.
std::string Dump(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

absl::Status CheckSameRun(const std::string& path, const nlohmann::json& before,
                          const nlohmann::ordered_json& now) {
  std::vector<std::string> differences;
  for (const auto& [name, value] : now.items()) {
    const auto found = before.find(name);
    if (found != before.end() && *found == nlohmann::json(value)) continue;
    differences.push_back(fmt::format("{} is {}, was {}", name, Dump(value, -1),
                                      found == before.end() ? "not there" : Dump(*found, -1)));
  }
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("{}: an unfinished run with other options is here ({}); repeat its command to go "
                  "on with it, or --restart to discard it",
                  path, fmt::join(differences, "; ")));
}

}  // namespace

absl::StatusOr<WorkFolder> WorkFolder::Open(const std::string& output,
                                            const nlohmann::ordered_json& run,
                                            const WorkFolderOptions& options) {
  std::error_code error;
  // Without links, "..", and trailing slashes, so that the work folder is on the same disk.
  fs::path canonical = fs::weakly_canonical(fs::absolute(output, error), error);
  if (error) return Failed(output, "resolve", error);
  if (!canonical.has_filename()) canonical = canonical.parent_path();
  if (!canonical.has_filename()) return InvalidArgument("{}: not a folder to write to", output);

  NIBBLE_RETURN_IF_ERROR(CheckOutput(canonical.string(), options.overwrite));
  fs::create_directories(canonical.parent_path(), error);
  if (error) return Failed(canonical.parent_path().string(), "create", error);
  WorkFolder folder;
  folder.output_ = canonical.string();
  folder.overwrite_ = options.overwrite;
  const std::string path = folder.output_ + ".partial";
  if (mkdir(path.c_str(), 0777) != 0) {
    if (errno != EEXIST) return ErrnoError(path, "create");
    if (!fs::is_directory(path, error)) {
      return absl::FailedPreconditionError(fmt::format("{}: is in the way: not a folder", path));
    }
    NIBBLE_RETURN_IF_ERROR(CheckOurs(path));
  }
  folder.path_ = path;
  NIBBLE_RETURN_IF_ERROR(folder.Lock());
  NIBBLE_RETURN_IF_ERROR(folder.RestoreReplaced());
  NIBBLE_RETURN_IF_ERROR(CheckOutput(folder.output_, options.overwrite));
  NIBBLE_RETURN_IF_ERROR(folder.TakeUp(run, options.restart));
  return folder;
}

absl::Status WorkFolder::Lock() {
  const std::string path = Join(path_, kLock);
  lock_fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_fd_ < 0) return ErrnoError(path, "create");
  struct stat locked = {};
  struct stat named = {};
  const bool held = flock(lock_fd_, LOCK_EX | LOCK_NB) == 0;
  // A run that ended just now took the folder, and this lock, with it.
  if (held && fstat(lock_fd_, &locked) == 0 && stat(path.c_str(), &named) == 0 &&
      locked.st_ino == named.st_ino) {
    return absl::OkStatus();
  }
  close(std::exchange(lock_fd_, -1));
  return absl::FailedPreconditionError(
      fmt::format("{}: another run is at work here", std::exchange(path_, {})));
}

// A run was killed when the old output had moved away and the new one was not in its place.
absl::Status WorkFolder::RestoreReplaced() const {
  const std::string replaced = Join(path_, kReplaced);
  if (Exists(output_) || !Exists(replaced)) return absl::OkStatus();
  if (rename(replaced.c_str(), output_.c_str()) != 0) return ErrnoError(replaced, "move back");
  log::Info("{}: put back as it was before an interrupted replacement", output_);
  return SyncFolder(fs::path(output_).parent_path().string());
}

// Removes what a run made. At every moment, layers are whole and run.json is there while they are.
absl::Status WorkFolder::Discard() const {
  const std::string layers = Join(path_, kLayers);
  const std::string unfinished = Join(path_, kUnfinishedLayer);
  NIBBLE_RETURN_IF_ERROR(RemoveAll(unfinished));
  if (rename(layers.c_str(), unfinished.c_str()) != 0 && errno != ENOENT) {
    return ErrnoError(layers, "rename");
  }
  for (const std::string_view name : {kUnfinishedLayer, kReplaced, kOutput, kCalibration, kRun}) {
    NIBBLE_RETURN_IF_ERROR(RemoveAll(Join(path_, name)));
  }
  return absl::OkStatus();
}

absl::Status WorkFolder::TakeUp(const nlohmann::ordered_json& run, bool restart) const {
  const std::string path = Join(path_, kRun);
  const std::string layers = Join(path_, kLayers);
  if (!restart && Exists(path)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, JsonLimits().max_bytes));
    absl::StatusOr<nlohmann::json> before = ParseJson(text);
    if (!before.ok()) return Annotate(before.status(), path);
    NIBBLE_RETURN_IF_ERROR(CheckSameRun(path_, *before, run));
  } else {
    NIBBLE_RETURN_IF_ERROR(Discard());
    NIBBLE_RETURN_IF_ERROR(WriteFile(path, Dump(run, 2) + "\n"));
  }
  if (mkdir(layers.c_str(), 0777) != 0 && errno != EEXIST) return ErrnoError(layers, "create");
  return absl::OkStatus();
}

WorkFolder::WorkFolder(WorkFolder&& other) noexcept
    : output_(std::move(other.output_)),
      overwrite_(other.overwrite_),
      path_(std::exchange(other.path_, {})),
      lock_fd_(std::exchange(other.lock_fd_, -1)) {}

WorkFolder::~WorkFolder() {
  if (!path_.empty() && lock_fd_ >= 0 && !HasWork()) {
    absl::Status status = Discard();
    if (status.ok()) status = RemoveAll(path_);
    if (!status.ok()) log::Warning("{}", std::string(status.message()));
  }
  if (lock_fd_ >= 0) close(lock_fd_);
}

bool WorkFolder::HasWork() const {
  std::error_code error;
  return Exists(calibration_path()) || (Exists(Join(path_, kReplaced)) && !Exists(output_)) ||
         !fs::is_empty(Join(path_, kLayers), error);
}

std::string WorkFolder::calibration_path() const { return Join(path_, kCalibration); }

std::string WorkFolder::LayerPath(int64_t layer_idx) const {
  return fmt::format("{}/{}/{:05}", path_, kLayers, layer_idx);
}

bool WorkFolder::HasLayer(int64_t layer_idx) const { return Exists(LayerPath(layer_idx)); }

absl::StatusOr<std::string> WorkFolder::BeginLayer() const {
  return MakeEmpty(Join(path_, kUnfinishedLayer));
}

absl::Status WorkFolder::FinishLayer(int64_t layer_idx) const {
  const std::string from = Join(path_, kUnfinishedLayer);
  const std::string to = LayerPath(layer_idx);
  NIBBLE_RETURN_IF_ERROR(SyncFolder(from));
  if (rename(from.c_str(), to.c_str()) != 0) return ErrnoError(to, "rename");
  return SyncFolder(Join(path_, kLayers));
}

absl::StatusOr<std::string> WorkFolder::BeginOutput() const {
  return MakeEmpty(Join(path_, kOutput));
}

absl::Status WorkFolder::Commit() {
  const std::string made = Join(path_, kOutput);
  NIBBLE_RETURN_IF_ERROR(SyncFolder(made));
  NIBBLE_RETURN_IF_ERROR(CheckOutput(output_, overwrite_));
  NIBBLE_RETURN_IF_ERROR(PutInPlace(made));
  NIBBLE_RETURN_IF_ERROR(SyncFolder(fs::path(output_).parent_path().string()));
  absl::Status status = Discard();
  if (status.ok()) status = RemoveAll(path_);
  if (!status.ok()) log::Warning("{}", std::string(status.message()));
  path_.clear();
  return absl::OkStatus();
}

absl::Status WorkFolder::PutInPlace(const std::string& made) const {
  // Takes the place of an empty folder, never of one with files.
  if (rename(made.c_str(), output_.c_str()) == 0) return absl::OkStatus();
  if ((errno != ENOTEMPTY && errno != EEXIST) || !overwrite_) return ErrnoError(output_, "create");
  if (renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, output_.c_str(), RENAME_EXCHANGE) == 0) {
    return absl::OkStatus();
  }
  if (errno != EINVAL && errno != ENOSYS) return ErrnoError(output_, "replace");
  // A file system that cannot exchange: in two steps, the first of which RestoreReplaced undoes.
  const std::string replaced = Join(path_, kReplaced);
  NIBBLE_RETURN_IF_ERROR(RemoveAll(replaced));
  if (rename(output_.c_str(), replaced.c_str()) != 0) return ErrnoError(output_, "move away");
  if (rename(made.c_str(), output_.c_str()) == 0) return absl::OkStatus();
  const absl::Status status = ErrnoError(output_, "create");
  NIBBLE_RETURN_IF_ERROR(RestoreReplaced());
  return status;
}

}  // namespace nibble::quantize
