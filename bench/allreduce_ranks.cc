// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/allreduce_ranks.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/fnv1a.h"
#include "comm/group.h"

namespace nibble::bench {
namespace {

using comm::GroupMember;

constexpr uint32_t kMaxFrameBytes = 64 << 20;
constexpr std::chrono::seconds kMeetTimeout{60};

// A frame is its length in four bytes and so many bytes.
absl::Status WriteBytes(int fd, const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = send(fd, next, bytes, MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return Unavailable("the other end is gone: {}", std::strerror(errno));
    next += written;
    bytes -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}
absl::Status ReadBytes(int fd, void* data, size_t bytes) {
  char* next = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = recv(fd, next, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return Unavailable("a rank ended before its work was done");
    next += got;
    bytes -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}
absl::Status WriteFrame(int fd, const std::string& frame) {
  const auto size = static_cast<uint32_t>(frame.size());
  NIBBLE_RETURN_IF_ERROR(WriteBytes(fd, &size, sizeof(size)));
  return WriteBytes(fd, frame.data(), frame.size());
}
absl::StatusOr<std::string> ReadFrame(int fd) {
  uint32_t size = 0;
  NIBBLE_RETURN_IF_ERROR(ReadBytes(fd, &size, sizeof(size)));
  if (size > kMaxFrameBytes) return DataLoss("a frame of {} bytes", size);
  std::string frame(size, '\0');
  NIBBLE_RETURN_IF_ERROR(ReadBytes(fd, frame.data(), frame.size()));
  return frame;
}

comm::GroupPlace PlaceOf(const AllReduceBenchOptions& options, int rank, std::string group_id) {
  const int64_t hosts = options.transport == "shm" ? 1
                        : options.hosts > 0        ? options.hosts
                                                   : options.ranks;
  comm::GroupPlace place = {
      .rank = rank, .group_id = std::move(group_id), .bind_address = options.bind_address};
  for (int64_t r = 0; r < options.ranks; ++r) {
    place.node_of_rank.push_back(static_cast<int>(r * hosts / options.ranks));
  }
  return place;
}

// Connects without choosing: the cases measure by name.
absl::StatusOr<nlohmann::ordered_json> RunMember(GroupMember* member,
                                                 const std::vector<std::string>& addresses,
                                                 const RankBody& body) {
  comm::ConnectOptions options;
  options.all_reduce.mode = comm::AllReduceOptions::Mode::kNone;
  NIBBLE_ASSIGN_OR_RETURN(const auto communicator, member->Connect(addresses, options, nullptr));
  // What Connect of this library makes.
  auto* const group = dynamic_cast<comm::GroupCommunicator*>(communicator.get());
  if (group == nullptr) return Internal("a communicator of another kind");
  NIBBLE_ASSIGN_OR_RETURN(nlohmann::ordered_json result, body(group));
  NIBBLE_RETURN_IF_ERROR(group->Barrier());  // nobody leaves while others still wait for it
  return result;
}

absl::StatusOr<nlohmann::ordered_json> RunChild(const AllReduceBenchOptions& options, int rank,
                                                const std::string& group_id, int fd,
                                                const RankBody& body) {
  NIBBLE_ASSIGN_OR_RETURN(const auto member,
                          GroupMember::Prepare(PlaceOf(options, rank, group_id)));
  NIBBLE_RETURN_IF_ERROR(WriteFrame(fd, member->address()));
  std::vector<std::string> addresses;
  for (int64_t r = 0; r < options.ranks; ++r) {
    NIBBLE_ASSIGN_OR_RETURN(std::string address, ReadFrame(fd));
    addresses.push_back(std::move(address));
  }
  return RunMember(member.get(), addresses, body);
}

// The ranks' processes; those that still run when it is destroyed are killed.
class Children {
 public:
  ~Children() {
    for (const Child& child : children_) {
      close(child.fd);
      kill(child.pid, SIGKILL);
      waitpid(child.pid, nullptr, 0);
    }
  }

  absl::Status StartAll(const AllReduceBenchOptions& options, const std::string& group_id,
                        const RankBody& body) {
    for (int rank = 0; rank < static_cast<int>(options.ranks); ++rank) {
      NIBBLE_RETURN_IF_ERROR(Start(options, rank, group_id, body));
    }
    return absl::OkStatus();
  }

  // The child sends its result, or "E" and what went wrong, after "J".
  absl::Status Start(const AllReduceBenchOptions& options, int rank, const std::string& group_id,
                     const RankBody& body) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
      return Unavailable("no socket pair for rank {}: {}", rank, std::strerror(errno));
    }
    const pid_t pid = fork();
    if (pid < 0) {
      const int error = errno;
      close(fds[0]);
      close(fds[1]);
      return Unavailable("rank {} cannot be forked: {}", rank, std::strerror(error));
    }
    if (pid == 0) {
      close(fds[0]);
      for (const Child& child : children_) close(child.fd);
      const auto result = RunChild(options, rank, group_id, fds[1], body);
      const absl::Status sent =
          WriteFrame(fds[1], result.ok() ? "J" + result->dump()
                                         : "E" + std::string(result.status().message()));
      std::fflush(nullptr);
      _exit(sent.ok() ? 0 : 1);
    }
    close(fds[1]);
    children_.push_back({pid, fds[0]});
    return absl::OkStatus();
  }

  absl::Status ExchangeAddresses() {
    std::vector<std::string> addresses;
    for (size_t r = 0; r < children_.size(); ++r) {
      NIBBLE_ASSIGN_OR_RETURN(std::string address, ReadFrame(children_[r].fd));
      if (!address.empty() && address[0] == 'E') return ErrorOf(r, address);
      addresses.push_back(std::move(address));
    }
    for (const Child& child : children_) {
      for (const std::string& address : addresses) {
        NIBBLE_RETURN_IF_ERROR(WriteFrame(child.fd, address));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<nlohmann::ordered_json> Results() {
    nlohmann::ordered_json result;
    for (size_t r = 0; r < children_.size(); ++r) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string frame, ReadFrame(children_[r].fd));
      if (frame.empty() || frame[0] != 'J') return ErrorOf(r, frame);
      if (r == 0) result = nlohmann::ordered_json::parse(frame.substr(1), nullptr, false);
    }
    return result;
  }

 private:
  struct Child {
    pid_t pid;
    int fd;
  };

  static absl::Status ErrorOf(size_t rank, const std::string& frame) {
    return Internal("rank {}: {}", rank, frame.empty() ? "" : frame.substr(1));
  }

  std::vector<Child> children_;
};

// Letters and digits from whatever the path is made of.
std::string GroupIdOf(const std::filesystem::path& folder) {
  return fmt::format("bench-{:016x}", Fnv1a(folder.string()));
}

absl::Status WriteAddress(const std::filesystem::path& path, const std::string& address) {
  const std::filesystem::path unfinished = path.string() + ".part";
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    return InvalidArgument(
        "{} is there already: --rendezvous takes a folder of its own for each run", path.string());
  }
  std::ofstream(unfinished, std::ios::binary) << address;
  std::filesystem::rename(unfinished, path, error);
  if (error) return Unavailable("{}: {}", path.string(), error.message());
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadAddress(const std::filesystem::path& path,
                                        comm::Deadline deadline) {
  std::error_code error;
  while (!std::filesystem::exists(path, error)) {
    if (deadline.Passed()) {
      return absl::DeadlineExceededError(
          fmt::format("{} did not come within {} s", path.string(), kMeetTimeout.count()));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunForked(const AllReduceBenchOptions& options,
                                                 const RankBody& body) {
  const std::string group_id = fmt::format("bench-{}", getpid());
  absl::StatusOr<nlohmann::ordered_json> result;
  {
    Children children;
    absl::Status met = children.StartAll(options, group_id, body);
    if (met.ok()) met = children.ExchangeAddresses();
    if (met.ok()) {
      result = children.Results();
    } else {
      result = met;
    }
  }
  comm::RemoveLeftovers(group_id, 0);
  return result;
}

absl::StatusOr<nlohmann::ordered_json> RunThreads(const AllReduceBenchOptions& options,
                                                  const RankBody& body) {
  comm::AllReduceOptions all_reduce;
  all_reduce.mode = comm::AllReduceOptions::Mode::kNone;
  NIBBLE_ASSIGN_OR_RETURN(const auto group,
                          comm::MakeThreadGroup(static_cast<int>(options.ranks), all_reduce));
  std::vector<absl::StatusOr<nlohmann::ordered_json>> results(group.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < group.size(); ++r) {
    threads.emplace_back([&, r] {
      results[r] = body(dynamic_cast<comm::GroupCommunicator*>(group[r].get()));
      if (results[r].ok()) return;
      group[r]->Abort(std::string(results[r].status().message()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (auto& result : results) NIBBLE_RETURN_IF_ERROR(result.status());
  return std::move(results[0]);
}

absl::StatusOr<nlohmann::ordered_json> RunByHand(const AllReduceBenchOptions& options,
                                                 const RankBody& body) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::canonical(options.rendezvous, error);
  if (error) return InvalidArgument("--rendezvous {}: {}", options.rendezvous, error.message());
  const int rank = static_cast<int>(options.rank);
  NIBBLE_ASSIGN_OR_RETURN(const auto member,
                          GroupMember::Prepare(PlaceOf(options, rank, GroupIdOf(folder))));
  const auto path_of = [&](int64_t r) { return folder / fmt::format("rank-{}.address", r); };
  NIBBLE_RETURN_IF_ERROR(WriteAddress(path_of(rank), member->address()));
  const comm::Deadline deadline = comm::Deadline::After(kMeetTimeout);
  std::vector<std::string> addresses;
  for (int64_t r = 0; r < options.ranks; ++r) {
    NIBBLE_ASSIGN_OR_RETURN(std::string address, ReadAddress(path_of(r), deadline));
    addresses.push_back(std::move(address));
  }
  absl::StatusOr<nlohmann::ordered_json> result = RunMember(member.get(), addresses, body);
  std::filesystem::remove(path_of(rank), error);  // after the last barrier, or an error
  return result;
}

absl::StatusOr<nlohmann::ordered_json> RunOnRanks(const AllReduceBenchOptions& options,
                                                  const RankBodyOnPool& body) {
  const RankBody with_pool = [&](comm::GroupCommunicator* communicator) {
    // Forked ranks share this machine, whatever hosts they play.
    const int64_t sharing = options.rank < 0 ? options.ranks
                            : options.transport == "shm"
                                ? options.ranks
                                : communicator->size() / communicator->num_hosts();
    const int64_t share = std::max<int64_t>(1, ThreadPool::HostThreads() / sharing);
    ThreadPool pool(static_cast<int>(options.threads > 0 ? options.threads : share));
    return body(communicator, &pool);
  };
  if (options.rank >= 0) return RunByHand(options, with_pool);
  return options.transport == "threads" ? RunThreads(options, with_pool)
                                        : RunForked(options, with_pool);
}

}  // namespace nibble::bench
