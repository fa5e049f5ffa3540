// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/ranks/local_ranks.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "base/check.h"
#include "comm/ranks/local_rank.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr uint64_t kWakeKey = ~uint64_t{0};

// One thread reads all sockets, starts and ends the processes and calls the observer; it lives
// until the processes are gone.
class LocalRanksImpl final : public LocalRanks {
 public:
  explicit LocalRanksImpl(LocalRanksOptions options) : options_(std::move(options)) {}
  ~LocalRanksImpl() override;

  absl::Status Init();

  int size() const override { return options_.num_ranks; }
  absl::Status Start(Observer* observer) override;
  void Send(int rank, Frame frame) override;
  void Restart(int rank, const std::string& why) override;
  std::string Describe(int rank) const override { return At(rank).Describe(); }
  // All are on this host, so that nobody binds it.
  std::string BindAddress(int /*rank*/) const override { return "127.0.0.1"; }
  void Stop() override;

 private:
  struct Request {
    LocalRank* rank;
    std::string why;
  };

  LocalRank& At(int rank) const;
  void Wake();

  // These run on the loop's thread.
  void Loop(Observer* observer);
  milliseconds UntilNextStep() const;
  void Handle(const epoll_event& event);
  void TakeRequests();

  const LocalRanksOptions options_;
  int epoll_ = -1;
  int wake_ = -1;
  std::vector<std::unique_ptr<LocalRank>> ranks_;

  std::mutex mutex_;
  std::vector<Request> requests_;  // guarded by mutex_
  std::atomic<bool> stop_{false};
  std::mutex stop_mutex_;  // held by Stop()
  std::thread thread_;     // guarded by stop_mutex_, once started
};

LocalRanksImpl::~LocalRanksImpl() {
  Stop();
  ranks_.clear();
  if (wake_ >= 0) ::close(wake_);
  if (epoll_ >= 0) ::close(epoll_);
}

absl::Status LocalRanksImpl::Init() {
  epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  epoll_event event = {.events = EPOLLIN, .data = {.u64 = kWakeKey}};
  if (epoll_ < 0 || wake_ < 0 || ::epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event) != 0) {
    return ResourceExhausted("cannot wait for ranks: {}", std::strerror(errno));
  }
  for (int i = 0; i < options_.num_ranks; ++i) {
    ranks_.push_back(std::make_unique<LocalRank>(options_.first_rank + i, &options_, epoll_,
                                                 static_cast<uint64_t>(i)));
  }
  return absl::OkStatus();
}

absl::Status LocalRanksImpl::Start(Observer* observer) {
  const std::lock_guard lock(stop_mutex_);
  NIBBLE_CHECK(!thread_.joinable() && !stop_);
  thread_ = std::thread([this, observer] { Loop(observer); });
  return absl::OkStatus();
}

LocalRank& LocalRanksImpl::At(int rank) const {
  const int index = rank - options_.first_rank;
  NIBBLE_CHECK(index >= 0 && index < options_.num_ranks);
  return *ranks_[static_cast<size_t>(index)];
}

void LocalRanksImpl::Wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_, &one, sizeof one);
}

void LocalRanksImpl::Send(int rank, Frame frame) {
  NIBBLE_CHECK(frame.payload.size() <= Frame::kMaxPayloadBytes);
  // The loop has to look after what waits: it may wait too long, or be too much.
  if (At(rank).Send(std::move(frame))) Wake();
}

void LocalRanksImpl::Restart(int rank, const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    requests_.push_back({.rank = &At(rank), .why = why});
  }
  Wake();
}

void LocalRanksImpl::Stop() {
  const std::lock_guard lock(stop_mutex_);
  stop_ = true;
  if (!thread_.joinable()) return;
  Wake();
  thread_.join();
}

void LocalRanksImpl::Loop(Observer* observer) {
  for (const auto& rank : ranks_) rank->Start(observer);
  bool stopping = false;
  const auto all_gone = [this] {
    return std::all_of(ranks_.begin(), ranks_.end(), [](const auto& rank) { return rank->gone(); });
  };
  std::array<epoll_event, 32> events;
  while (!stopping || !all_gone()) {
    const int num_events = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()),
                                        static_cast<int>(UntilNextStep().count()));
    if (stop_ && !std::exchange(stopping, true)) {
      const Clock::time_point deadline = Clock::now() + options_.stop_grace;
      for (const auto& rank : ranks_) rank->Stop(deadline);
    }
    for (int i = 0; i < num_events; ++i) Handle(events[static_cast<size_t>(i)]);
    TakeRequests();
    for (const auto& rank : ranks_) rank->Step();
  }
}

milliseconds LocalRanksImpl::UntilNextStep() const {
  const Clock::time_point now = Clock::now();
  Clock::time_point next = now + milliseconds(60'000);
  for (const auto& rank : ranks_) next = std::min(next, rank->NextStep());
  return std::max(std::chrono::ceil<milliseconds>(next - now), milliseconds(0));
}

void LocalRanksImpl::Handle(const epoll_event& event) {
  if (event.data.u64 == kWakeKey) {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t read = ::read(wake_, &count, sizeof count);
    return;
  }
  LocalRank& rank = *ranks_[event.data.u64];
  if ((event.events & EPOLLOUT) != 0) rank.Flush();
  if ((event.events & ~static_cast<uint32_t>(EPOLLOUT)) != 0) rank.Receive();
}

void LocalRanksImpl::TakeRequests() {
  std::vector<Request> requests;
  {
    const std::lock_guard lock(mutex_);
    requests.swap(requests_);
  }
  for (Request& request : requests) request.rank->Restart(std::move(request.why));
}

absl::Status CheckProgram(const LocalRanksOptions& options) {
  for (int i = 0; i < options.num_ranks; ++i) {
    const std::vector<std::string> argv = options.command(options.first_rank + i);
    if (argv.empty() || ::access(argv[0].c_str(), X_OK) != 0) {
      return NotFound("rank {}: the program '{}' cannot be run: {}", options.first_rank + i,
                      argv.empty() ? "" : argv[0],
                      argv.empty() ? "no name given" : std::strerror(errno));
    }
  }
  return absl::OkStatus();
}

absl::Status Check(const LocalRanksOptions& options) {
  constexpr int kMaxRanks = 256;
  if (options.num_ranks < 1 || options.num_ranks > kMaxRanks || options.first_rank < 0) {
    return InvalidArgument("{} ranks from number {}: wanted are 1 to {} from 0 on",
                           options.num_ranks, options.first_rank, kMaxRanks);
  }
  if (options.command == nullptr) return InvalidArgument("ranks have no command");
  return CheckProgram(options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalRanks>> LocalRanks::Create(LocalRanksOptions options) {
  NIBBLE_RETURN_IF_ERROR(Check(options));
  auto ranks = std::make_unique<LocalRanksImpl>(std::move(options));
  NIBBLE_RETURN_IF_ERROR(ranks->Init());
  return std::unique_ptr<LocalRanks>(std::move(ranks));
}

}  // namespace nibble::comm
