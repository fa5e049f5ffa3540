// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/segment.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

namespace nibble::comm {
namespace {

constexpr std::chrono::milliseconds kAttachRetry(1);
constexpr const char* kShmFolder = "/dev/shm";  // where shm_open keeps its names on Linux

std::string NamePrefix(const std::string& group_id, uint64_t generation) {
  return fmt::format("nibble.{}.{}.", group_id, generation);
}

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

// Takes the pages now: a page that is missing later is a SIGBUS in the middle of a collective.
absl::Status Allocate(int fd, size_t bytes, const std::string& name) {
  struct statvfs space {};
  uint64_t free_bytes = UINT64_MAX;
  // A file system without a limit counts no blocks at all.
  if (fstatvfs(fd, &space) == 0 && space.f_blocks != 0) {
    free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
  }
  const auto too_small = [&](const char* why) {
    return ResourceExhausted(
        "shared memory {} needs {} bytes, {} has {} free{} (fewer ranks per host, or a larger {})",
        name, bytes, kShmFolder, free_bytes, why, kShmFolder);
  };
  if (free_bytes < bytes) return too_small("");
  int error = EINTR;
  while (error == EINTR) error = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  if (error == ENOSPC || error == ENOMEM || error == EFBIG) {
    return too_small(fmt::format(" but: {}", std::strerror(error)).c_str());
  }
  if (error != 0) return Unavailable("cannot allocate {}: {}", name, std::strerror(error));
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGroupId(std::string_view id) {
  constexpr size_t kMaxBytes = 64;
  const auto is_allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
  };
  if (!id.empty() && id.size() <= kMaxBytes && std::all_of(id.begin(), id.end(), is_allowed)) {
    return absl::OkStatus();
  }
  return InvalidArgument("group id '{}': 1 to {} letters, digits and '-' are allowed", id,
                         kMaxBytes);
}

absl::StatusOr<std::unique_ptr<ShmSegment>> ShmSegment::Prepare(const SegmentPlace& place) {
  if (place.num_ranks < 1 || place.num_ranks > shm::kMaxRanks) {
    return InvalidArgument("{} ranks on one host, the limit is 1..{}", place.num_ranks,
                           shm::kMaxRanks);
  }
  if (place.rank < 0 || place.rank >= place.num_ranks) {
    return InvalidArgument("rank {} of a host with {} ranks", place.rank, place.num_ranks);
  }
  if (place.first_rank < 0 || place.node < 0) {
    return InvalidArgument("first rank {} of node {}: neither may be negative", place.first_rank,
                           place.node);
  }
  NIBBLE_RETURN_IF_ERROR(CheckGroupId(place.group_id));
  if (!place.part.empty()) NIBBLE_RETURN_IF_ERROR(CheckGroupId(place.part));
  return std::unique_ptr<ShmSegment>(
      new ShmSegment(place, fmt::format("/{}{}{}{}", NamePrefix(place.group_id, place.generation),
                                        place.part, place.part.empty() ? "" : ".", place.node)));
}

absl::StatusOr<std::vector<std::unique_ptr<ShmSegment>>> ShmSegment::MakeForThreads(
    int num_ranks, uint64_t first_round) {
  return MakeForThreads(SegmentPlace{.num_ranks = num_ranks, .group_id = "threads"}, first_round);
}

absl::StatusOr<std::vector<std::unique_ptr<ShmSegment>>> ShmSegment::MakeForThreads(
    SegmentPlace place, uint64_t first_round) {
  std::vector<std::unique_ptr<ShmSegment>> segments;
  for (int rank = 0; rank < place.num_ranks || rank == 0; ++rank) {
    place.rank = rank;
    NIBBLE_ASSIGN_OR_RETURN(auto segment, Prepare(place));
    segments.push_back(std::move(segment));
  }
  NIBBLE_ASSIGN_OR_RETURN(auto map, shm::Map::Make(-1, segments.front()->layout()));
  map->Initialize(place.generation, first_round);
  for (auto& segment : segments) {
    segment->SetMap(map);
    NIBBLE_RETURN_IF_ERROR(segment->TakeSeat());
  }
  return segments;
}

ShmSegment::ShmSegment(const SegmentPlace& place, std::string name)
    : place_(place), name_(std::move(name)), peers_(static_cast<size_t>(place.num_ranks)) {}

ShmSegment::~ShmSegment() {
  if (map_ == nullptr) return;
  shm::Doorbell& mine = map_->doorbell(rank());
  if (mine.seat.load(std::memory_order_relaxed) != shm::kSeated) return;
  mine.seat.store(shm::kLeft, std::memory_order_seq_cst);
  WakeAll();
}

absl::Status ShmSegment::Connect(Deadline deadline) {
  if (aborted_.load(std::memory_order_acquire)) return BrokenStatus();
  if (map_ != nullptr) return InvalidArgument("{} is connected already", name_);
  if (rank() != 0) {
    NIBBLE_RETURN_IF_ERROR(Attach(deadline));
    return WaitForSeats(deadline);
  }
  NIBBLE_RETURN_IF_ERROR(Create());
  const absl::Status status = WaitForSeats(deadline);
  shm_unlink(name_.c_str());
  return status;
}

absl::Status ShmSegment::Create() {
  const Fd fd(shm_open(name_.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600));
  if (fd.get() < 0 && errno == EEXIST) {
    return absl::AlreadyExistsError(
        fmt::format("shared memory {} exists: a group of this id and generation is forming, or "
                    "died while it did",
                    name_));
  }
  if (fd.get() < 0) {
    return Unavailable("cannot create shared memory {}: {}", name_, std::strerror(errno));
  }
  const auto make = [&]() -> absl::Status {
    const shm::Layout layout = this->layout();
    NIBBLE_RETURN_IF_ERROR(Allocate(fd.get(), layout.total_bytes, name_));
    NIBBLE_ASSIGN_OR_RETURN(auto map, shm::Map::Make(fd.get(), layout));
    map->Initialize(place_.generation, 0);
    map->header().magic.store(shm::kMagic, std::memory_order_release);
    SetMap(std::move(map));
    return TakeSeat();
  };
  const absl::Status status = make();
  if (!status.ok()) shm_unlink(name_.c_str());
  return status;
}

absl::Status ShmSegment::Attach(Deadline deadline) {
  for (;;) {
    const absl::Status status = TryAttach();
    if (!absl::IsNotFound(status)) return status;
    if (deadline.Passed()) {
      return absl::DeadlineExceededError(
          fmt::format("rank {} has not made shared memory {} in time: {}", place_.first_rank, name_,
                      std::string(status.message())));
    }
    std::unique_lock lock(mutex_);
    abort_called_.wait_for(lock, kAttachRetry);
    if (aborted_.load(std::memory_order_relaxed)) return absl::AbortedError(abort_reason_);
  }
}

absl::Status ShmSegment::TryAttach() {
  const Fd fd(shm_open(name_.c_str(), O_RDWR, 0));
  if (fd.get() < 0 && errno == ENOENT) return NotFound("there is none");
  if (fd.get() < 0) {
    return Unavailable("cannot open shared memory {}: {}", name_, std::strerror(errno));
  }
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) {
    return Unavailable("cannot look at shared memory {}: {}", name_, std::strerror(errno));
  }
  if (info.st_uid != geteuid()) {
    return absl::PermissionDeniedError(fmt::format("shared memory {} belongs to user {}, not to {}",
                                                   name_, info.st_uid, geteuid()));
  }
  if (info.st_size == 0) return NotFound("it has no memory yet");
  const shm::Layout layout = this->layout();
  if (static_cast<uint64_t>(info.st_size) != layout.total_bytes) {
    return absl::FailedPreconditionError(
        fmt::format("shared memory {} has {} bytes, that of {} ranks has {}", name_, info.st_size,
                    size(), layout.total_bytes));
  }
  NIBBLE_ASSIGN_OR_RETURN(auto map, shm::Map::Make(fd.get(), layout));
  NIBBLE_RETURN_IF_ERROR(CheckHeader(map->header()));
  SetMap(std::move(map));
  return TakeSeat();
}

absl::Status ShmSegment::CheckHeader(shm::Header& header) const {
  const uint64_t magic = header.magic.load(std::memory_order_acquire);
  if (magic == 0) return NotFound("its maker has not finished");
  const auto differs = [&](const char* what, uint64_t has, uint64_t wanted) {
    return absl::FailedPreconditionError(
        fmt::format("shared memory {} has {} {}, expected {}", name_, what, has, wanted));
  };
  if (magic != shm::kMagic) return differs("magic", magic, shm::kMagic);
  if (header.layout_version != shm::kLayoutVersion) {
    return differs("layout version", header.layout_version, shm::kLayoutVersion);
  }
  const auto num_ranks = static_cast<uint64_t>(size());
  if (header.num_ranks != num_ranks) return differs("ranks", header.num_ranks, num_ranks);
  if (header.generation != place_.generation) {
    return differs("generation", header.generation, place_.generation);
  }
  const uint64_t bytes = layout().total_bytes;
  if (header.bytes != bytes) return differs("bytes", header.bytes, bytes);
  return absl::OkStatus();
}

absl::Status ShmSegment::TakeSeat() {
  shm::Doorbell& mine = map_->doorbell(rank());
  int32_t holder = 0;
  if (!mine.pid.compare_exchange_strong(holder, static_cast<int32_t>(getpid()))) {
    return absl::AlreadyExistsError(fmt::format("rank {} of shared memory {} is pid {} already",
                                                place_.name_of(rank()), name_, holder));
  }
  mine.seat.store(shm::kSeated, std::memory_order_seq_cst);
  WakeAll();
  if (!aborted_.load(std::memory_order_acquire)) return absl::OkStatus();
  // Abort came before there was anybody to tell.
  return Fail(absl::StatusCode::kAborted, std::string(BrokenStatus().message()));
}

absl::Status ShmSegment::WaitForSeats(Deadline deadline) {
  for (int peer = 0; peer < size(); ++peer) {
    const auto seated = [this, peer] {
      return map_->doorbell(peer).seat.load(std::memory_order_seq_cst) != shm::kEmpty;
    };
    NIBBLE_RETURN_IF_ERROR(WaitUntil(
        seated, {.peer = peer, .deadline = deadline, .verb = "attach to the shared memory"}));
  }
  return CheckPeers();
}

void ShmSegment::SetMap(std::shared_ptr<shm::Map> map) {
  const std::lock_guard lock(mutex_);
  map_ = std::move(map);
}

void RemoveSegmentNames(const std::string& group_id, uint64_t generation) {
  if (!CheckGroupId(group_id).ok()) return;
  DIR* const folder = opendir(kShmFolder);
  if (folder == nullptr) return;
  const std::string prefix = NamePrefix(group_id, generation);
  while (const dirent* const entry = readdir(folder)) {
    const std::string_view name(entry->d_name);
    if (name.substr(0, prefix.size()) == prefix) shm_unlink(fmt::format("/{}", name).c_str());
  }
  closedir(folder);
}

}  // namespace nibble::comm
