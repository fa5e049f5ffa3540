// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace nibble::quantize {

absl::Status ErrnoError(const std::string& path, std::string_view action) {
  const int error = errno;
  const std::string message = fmt::format("{}: cannot {}: {}", path, action, std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

absl::Status WriteFile(const std::string& path, std::string_view content) {
  const std::string temporary = path + ".tmp";
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoError(temporary, "create");
  absl::Status status;
  while (status.ok() && !content.empty()) {
    const ssize_t written = write(fd, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) status = ErrnoError(temporary, "write");
    if (written > 0) content.remove_prefix(static_cast<size_t>(written));
  }
  if (status.ok() && fsync(fd) != 0) status = ErrnoError(temporary, "sync");
  close(fd);
  NIBBLE_RETURN_IF_ERROR(status);
  if (rename(temporary.c_str(), path.c_str()) != 0) return ErrnoError(path, "rename");
  return absl::OkStatus();
}

absl::Status SyncFolder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoError(path, "open");
  const int synced = fsync(fd);
  const absl::Status status = synced == 0 ? absl::OkStatus() : ErrnoError(path, "sync");
  close(fd);
  return status;
}

}  // namespace nibble::quantize
