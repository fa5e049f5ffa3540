// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace nibble::cli {
namespace {

bool WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    text.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MemoryFile>> MemoryFile::Create(std::string_view text) {
  const int fd = memfd_create("nibble", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return ResourceExhausted("no file in memory: {}", std::strerror(errno));
  std::shared_ptr<const MemoryFile> file(new MemoryFile(fd));
  constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (!WriteAll(fd, text) || fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
    return ResourceExhausted("no file of {} bytes in memory: {}", text.size(),
                             std::strerror(errno));
  }
  return file;
}

MemoryFile::~MemoryFile() { close(fd_); }

std::string MemoryFile::path() const { return fmt::format("/proc/{}/fd/{}", getpid(), fd_); }

}  // namespace nibble::cli
