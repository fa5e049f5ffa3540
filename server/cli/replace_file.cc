// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/replace_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace nibble::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxLinks = 40;              // as the kernel's
constexpr int kReaderPatienceMs = 10'000;  // of a pipe's reader that takes nothing

std::string Reason(int error) { return std::generic_category().message(error); }

// Where the text goes.
struct Target {
  std::string path;
  bool in_place = false;  // a device, a pipe: what is there must stay, and is written to
};

// A rename would put a file where a link or a device was.
absl::StatusOr<Target> Resolve(const std::string& path) {
  struct stat there = {};
  const bool exists = ::stat(path.c_str(), &there) == 0;
  if (exists && S_ISDIR(there.st_mode)) {
    return InvalidArgument("{} is a directory, want a file", path);
  }
  if (exists && !S_ISREG(there.st_mode)) return Target{.path = path, .in_place = true};
  fs::path target = path;
  for (int i = 0; i < kMaxLinks; ++i) {
    std::error_code error;
    const fs::path link = fs::read_symlink(target, error);
    if (error) return Target{.path = target.string()};  // no link
    const fs::path folder = fs::canonical(fs::absolute(target).parent_path(), error);
    // /dev/stdout: the link says what is open, not where a file could be.
    if (folder.string().rfind("/proc/", 0) == 0) return Target{.path = path, .in_place = true};
    target = target.parent_path() / link;  // the link alone if that is absolute
  }
  return Unavailable("{}: {}", path, Reason(ELOOP));
}

// All of `text`, also into a pipe. Returns an errno, or 0.
int WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EAGAIN) {
      pollfd wait = {.fd = fd, .events = POLLOUT, .revents = 0};
      if (::poll(&wait, 1, kReaderPatienceMs) == 0) return ETIMEDOUT;
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

// `name` is what errors call it: the caller gave that. `flags`: of open(2).
absl::Status Write(const std::string& path, int flags, std::string_view text,
                   const std::string& name) {
  const int fd = ::open(path.c_str(), flags | O_WRONLY | O_CLOEXEC, 0666);
  if (fd < 0) return Unavailable("{} cannot be written: {}", name, Reason(errno));
  int error = WriteAll(fd, text);
  if (::close(fd) != 0 && error == 0) error = errno;  // a network's disk is full here
  if (error == 0) return absl::OkStatus();
  return Unavailable("{} cannot be written: {}", name, Reason(error));
}

std::string PartialOf(const std::string& path) { return fmt::format("{}.{}", path, getpid()); }

absl::Status WritePartial(const std::string& partial, std::string_view text,
                          const std::string& name) {
  absl::Status written = Write(partial, O_CREAT | O_TRUNC, text, name);
  if (!written.ok()) std::remove(partial.c_str());
  return written;
}

}  // namespace

absl::Status ReplaceFile(const std::string& path, const std::string& text) {
  NIBBLE_ASSIGN_OR_RETURN(const Target target, Resolve(path));
  // A pipe that nobody reads would be waited for.
  if (target.in_place) return Write(target.path, O_APPEND | O_NONBLOCK, text, path);
  const std::string partial = PartialOf(target.path);
  NIBBLE_RETURN_IF_ERROR(WritePartial(partial, text, path));
  if (std::rename(partial.c_str(), target.path.c_str()) == 0) return absl::OkStatus();
  const int error = errno;
  std::remove(partial.c_str());
  return Unavailable("{} cannot be replaced: {}", path, Reason(error));
}

absl::Status CheckReplaceable(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const Target target, Resolve(path));
  if (target.in_place) {  // not opened: a pipe's reader would find its end
    if (::access(path.c_str(), W_OK) == 0) return absl::OkStatus();
    return Unavailable("{} cannot be written: {}", path, Reason(errno));
  }
  const std::string partial = PartialOf(target.path);
  NIBBLE_RETURN_IF_ERROR(WritePartial(partial, "", path));
  std::remove(partial.c_str());
  return absl::OkStatus();
}

}  // namespace nibble::cli
