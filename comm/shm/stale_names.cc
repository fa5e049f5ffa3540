// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/stale_names.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/shm/peer_process.h"
#include "comm/shm/segment_layout.h"

namespace nibble::comm {
namespace {

constexpr const char* kFolder = "/dev/shm";
constexpr std::string_view kPrefix = "nibble.";
// A maker that has not written its pid yet does so at once, or died.
constexpr int64_t kSecondsToSeat = 120;

template <typename T>
bool ReadAt(int fd, size_t offset, T* value) {
  return pread(fd, value, sizeof(T), static_cast<off_t>(offset)) == static_cast<ssize_t>(sizeof(T));
}

// Of the rank that made the segment; 0 when it has not written it, or writes another layout.
pid_t MakerOf(int fd) {
  uint64_t magic = 0;
  uint32_t version = 0;
  uint32_t num_ranks = 0;
  int32_t pid = 0;
  if (!ReadAt(fd, offsetof(shm::Header, magic), &magic) || magic != shm::kMagic) return 0;
  if (!ReadAt(fd, offsetof(shm::Header, layout_version), &version) ||
      version != shm::kLayoutVersion) {
    return 0;
  }
  if (!ReadAt(fd, offsetof(shm::Header, num_ranks), &num_ranks) || num_ranks < 1 ||
      num_ranks > static_cast<uint32_t>(shm::kMaxRanks)) {
    return 0;
  }
  // Rank 0's.
  const size_t doorbells = shm::Layout::For(static_cast<int>(num_ranks)).doorbells;
  return ReadAt(fd, doorbells + offsetof(shm::Doorbell, pid), &pid) && pid > 0 ? pid : 0;
}

bool IsStale(const std::string& name) {
  const int fd = shm_open(name.c_str(), O_RDONLY, 0);
  if (fd < 0) return false;
  struct stat info {};
  bool is_stale = false;
  if (fstat(fd, &info) == 0 && info.st_uid == geteuid()) {
    if (const pid_t maker = MakerOf(fd); maker != 0) {
      is_stale = shm::PeerProcess(maker).Gone();
    } else {
      is_stale = time(nullptr) - info.st_mtim.tv_sec > kSecondsToSeat;
    }
  }
  close(fd);
  return is_stale;
}

}  // namespace

int RemoveStaleNames(std::string_view group_prefix) {
  DIR* const folder = opendir(kFolder);
  if (folder == nullptr) return 0;
  const std::string prefix = std::string(kPrefix) + std::string(group_prefix);
  int count = 0;
  while (const dirent* const entry = readdir(folder)) {
    const std::string_view file(entry->d_name);
    if (file.substr(0, prefix.size()) != prefix) continue;
    const std::string name = "/" + std::string(file);
    if (IsStale(name) && shm_unlink(name.c_str()) == 0) ++count;
  }
  closedir(folder);
  return count;
}

}  // namespace nibble::comm
