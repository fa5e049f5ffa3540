// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/ranks/local_ranks.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "comm/ranks/frame_sender.h"
#include "comm/ranks/frame_stream.h"
#include "comm/ranks/rank_process.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr uint64_t kWakeKey = ~uint64_t{0};
constexpr milliseconds kReapPeriod{1};
// A process that closed its channel is usually about to end: what it ends with is worth a wait.
constexpr milliseconds kCloseToEnd{500};
// Killed and not gone after so long: it hangs in the kernel. Its rank goes on without it.
constexpr milliseconds kKillToEnd{2'000};

struct Rank {
  Rank(int rank, int epoll, uint64_t key) : number(rank), sender(epoll, key) {}

  enum class State {
    kDown,     // no process, and nobody asked for one
    kWaiting,  // a process will be started at `start_at`
    kUp,
    kEnding,  // killed, or its channel is closed; waited for
  };

  const int number;
  FrameSender sender;
  std::atomic<pid_t> pid{0};  // 0: none

  // The loop's own.
  State state = State::kDown;
  FrameReader reader;
  Clock::time_point started;
  Clock::time_point start_at;
  int young_deaths = 0;         // in a row
  bool restart = false;         // kEnding: a new one is wanted
  std::string why;              // kEnding: what was found, before its exit status
  bool killed = false;          // kEnding: by us
  Clock::time_point next_step;  // kEnding: of patience
};

// One thread reads all sockets, starts and ends the processes and calls the observer; the kernel
// kills the processes when it ends (rank_process.h), so it lives until they are gone.
class LocalRanksImpl final : public LocalRanks {
 public:
  explicit LocalRanksImpl(LocalRanksOptions options) : options_(std::move(options)) {}
  ~LocalRanksImpl() override;

  absl::Status Init();

  int size() const override { return options_.num_ranks; }
  absl::Status Start(Observer* observer) override;
  void Send(int rank, Frame frame) override;
  void Restart(int rank, const std::string& why) override;
  std::string Describe(int rank) const override;
  void Stop() override;

 private:
  struct Request {
    Rank* rank;
    std::string why;
  };

  Rank& At(int rank) const;
  void Wake();

  // All of these run on the loop's thread.
  void Loop();
  milliseconds UntilNextStep() const;
  void TakeRequests();
  void Receive(Rank* rank);
  void Step(Rank* rank);
  void StartProcess(Rank* rank);
  std::vector<std::string> CommandOf(int rank) const;
  void CheckReading(Rank* rank);
  void StepToStop(Rank* rank);
  // Closes the channel of a rank that is up. `kill`: the process is not given the time to end.
  void End(Rank* rank, std::string why, bool kill);
  void Kill(Rank* rank);
  void Reap(Rank* rank);
  void Ended(Rank* rank, const std::string& how);
  void StartLater(Rank* rank);
  void BeginStop();
  bool AllGone() const;

  const LocalRanksOptions options_;
  int epoll_ = -1;
  int wake_ = -1;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Observer* observer_ = nullptr;
  std::vector<pid_t> hanging_;                      // killed, and waited for no longer
  std::optional<Clock::time_point> stop_deadline_;  // set: stopping, the observer is not called

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
    ranks_.push_back(
        std::make_unique<Rank>(options_.first_rank + i, epoll_, static_cast<uint64_t>(i)));
  }
  return absl::OkStatus();
}

absl::Status LocalRanksImpl::Start(Observer* observer) {
  const std::lock_guard lock(stop_mutex_);
  NIBBLE_CHECK(!thread_.joinable() && !stop_);
  observer_ = observer;
  thread_ = std::thread([this] { Loop(); });
  return absl::OkStatus();
}

Rank& LocalRanksImpl::At(int rank) const {
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
  if (At(rank).sender.Send(std::move(frame))) Wake();
}

void LocalRanksImpl::Restart(int rank, const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    requests_.push_back({.rank = &At(rank), .why = why});
  }
  Wake();
}

std::string LocalRanksImpl::Describe(int rank) const {
  const pid_t pid = At(rank).pid;
  return pid == 0 ? fmt::format("rank {}", rank) : fmt::format("rank {} (pid {})", rank, pid);
}

void LocalRanksImpl::Stop() {
  const std::lock_guard lock(stop_mutex_);
  stop_ = true;
  if (!thread_.joinable()) return;
  Wake();
  thread_.join();
}

void LocalRanksImpl::Loop() {
  for (const auto& rank : ranks_) {
    rank->state = Rank::State::kWaiting;
    rank->start_at = Clock::now();
  }
  std::array<epoll_event, 32> events;
  while (!stop_deadline_ || !AllGone()) {
    const int num_events = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()),
                                        static_cast<int>(UntilNextStep().count()));
    if (stop_ && !stop_deadline_) BeginStop();
    for (int i = 0; i < num_events; ++i) {
      const uint64_t key = events[static_cast<size_t>(i)].data.u64;
      if (key == kWakeKey) {
        uint64_t count = 0;
        [[maybe_unused]] const ssize_t read = ::read(wake_, &count, sizeof count);
        continue;
      }
      Rank* rank = ranks_[key].get();
      if ((events[static_cast<size_t>(i)].events & EPOLLOUT) != 0) rank->sender.Flush();
      if ((events[static_cast<size_t>(i)].events & ~static_cast<uint32_t>(EPOLLOUT)) != 0) {
        Receive(rank);
      }
    }
    TakeRequests();
    for (const auto& rank : ranks_) Step(rank.get());
    std::erase_if(hanging_, [](pid_t pid) { return ::waitpid(pid, nullptr, WNOHANG) != 0; });
  }
}

milliseconds LocalRanksImpl::UntilNextStep() const {
  const Clock::time_point now = Clock::now();
  Clock::time_point next = now + milliseconds(60'000);
  for (const auto& rank : ranks_) {
    switch (rank->state) {
      case Rank::State::kDown:
        break;
      case Rank::State::kWaiting:
        next = std::min(next, rank->start_at);
        break;
      case Rank::State::kUp:
        if (stop_deadline_) next = std::min(next, *stop_deadline_);
        if (const auto waiting = rank->sender.waiting()) {
          next = std::min(next, waiting->since + options_.send_timeout);
        }
        break;
      case Rank::State::kEnding:
        next = std::min(next, now + kReapPeriod);
        break;
    }
  }
  return std::max(std::chrono::ceil<milliseconds>(next - now), milliseconds(0));
}

void LocalRanksImpl::TakeRequests() {
  std::vector<Request> requests;
  {
    const std::lock_guard lock(mutex_);
    requests.swap(requests_);
  }
  if (stop_deadline_) return;
  for (Request& request : requests) {
    Rank* rank = request.rank;
    if (rank->state == Rank::State::kDown) {
      StartLater(rank);
    } else if (rank->state == Rank::State::kUp) {
      End(rank, std::move(request.why), /*kill=*/true);
      rank->restart = true;
    } else if (rank->state == Rank::State::kEnding) {
      rank->restart = true;
    }
  }
}

// At most one read a turn: a rank that sends much does not keep the others waiting.
void LocalRanksImpl::Receive(Rank* rank) {
  if (rank->state != Rank::State::kUp) return;
  const std::span<char> space = rank->reader.Space();
  const ssize_t received = rank->sender.Receive(space);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (received <= 0) return End(rank, "closed its channel", /*kill=*/false);
  rank->reader.Received(static_cast<size_t>(received));
  Frame frame;
  while (rank->state == Rank::State::kUp) {
    const absl::StatusOr<bool> whole = rank->reader.Next(&frame);
    if (!whole.ok()) {
      return End(rank, std::string(whole.status().message()), /*kill=*/true);
    }
    if (!*whole) return;
    if (!stop_deadline_) observer_->OnFrame(rank->number, std::move(frame));
  }
}

void LocalRanksImpl::Step(Rank* rank) {
  switch (rank->state) {
    case Rank::State::kDown:
      break;
    case Rank::State::kWaiting:
      if (Clock::now() >= rank->start_at) StartProcess(rank);
      break;
    case Rank::State::kUp:
      stop_deadline_ ? StepToStop(rank) : CheckReading(rank);
      break;
    case Rank::State::kEnding:
      Reap(rank);
      break;
  }
}

std::vector<std::string> LocalRanksImpl::CommandOf(int rank) const {
  std::vector<std::string> argv = options_.command(rank);
  argv.insert(argv.end(), {"--control-fd", std::to_string(kRankControlFd)});
  return argv;
}

void LocalRanksImpl::StartProcess(Rank* rank) {
  absl::StatusOr<RankProcess> process = StartRankProcess(CommandOf(rank->number));
  rank->started = Clock::now();
  if (!process.ok()) {
    log::Error("rank {}: {}", rank->number, std::string(process.status().message()));
    ++rank->young_deaths;
    return StartLater(rank);
  }
  rank->pid = process->pid;
  rank->reader = FrameReader();
  rank->restart = false;
  rank->killed = false;
  rank->state = Rank::State::kUp;
  rank->sender.Open(process->socket);
  observer_->OnUp(rank->number);
}

void LocalRanksImpl::CheckReading(Rank* rank) {
  const auto waiting = rank->sender.waiting();
  if (!waiting) return;
  const auto silence = Clock::now() - waiting->since;
  if (silence >= options_.send_timeout || waiting->num_bytes > options_.max_unread_bytes) {
    End(rank,
        fmt::format("does not read its channel: {} bytes wait, nothing was taken for {} ms",
                    waiting->num_bytes, std::chrono::floor<milliseconds>(silence).count()),
        /*kill=*/true);
  }
}

// It reads what waits for it, then an end of file, and ends by itself; or it does not.
void LocalRanksImpl::StepToStop(Rank* rank) {
  if (Clock::now() >= *stop_deadline_) {
    log::Warning("{} did not end within {} ms: killed", Describe(rank->number),
                 options_.stop_grace.count());
    End(rank, "did not end", /*kill=*/true);
  } else if (!rank->sender.waiting()) {
    rank->sender.ShutDown();
  }
}

void LocalRanksImpl::End(Rank* rank, std::string why, bool kill) {
  rank->sender.Close();
  rank->state = Rank::State::kEnding;
  rank->why = std::move(why);
  rank->next_step = std::max(Clock::now() + kCloseToEnd, stop_deadline_.value_or(Clock::now()));
  if (kill) Kill(rank);
}

void LocalRanksImpl::Kill(Rank* rank) {
  ::kill(rank->pid, SIGKILL);
  rank->killed = true;
  rank->next_step = Clock::now() + kKillToEnd;
}

void LocalRanksImpl::Reap(Rank* rank) {
  int status = 0;
  const pid_t reaped = ::waitpid(rank->pid, &status, WNOHANG);
  if (reaped == rank->pid) {
    // What a process that we killed ended with says nothing.
    return Ended(rank, rank->killed ? rank->why + ": killed" : DescribeEnd(status));
  }
  if (reaped < 0 && errno != EINTR) {
    return Ended(rank, rank->why + "; its exit status was lost");
  }
  if (Clock::now() < rank->next_step) return;
  if (!rank->killed) return Kill(rank);
  hanging_.push_back(rank->pid);
  Ended(rank, rank->why + ": killed, but it hangs in the kernel");
}

void LocalRanksImpl::Ended(Rank* rank, const std::string& how) {
  const std::string who = Describe(rank->number);
  rank->pid = 0;
  rank->state = Rank::State::kDown;
  const bool young = Clock::now() - rank->started < options_.young;
  rank->young_deaths = young ? rank->young_deaths + 1 : 0;
  if (stop_deadline_) return;
  // Before the observer is called: it may ask again.
  if (rank->restart) StartLater(rank);
  observer_->OnDown(rank->number, fmt::format("{}: {}", who, how));
}

void LocalRanksImpl::StartLater(Rank* rank) {
  milliseconds wait{0};
  if (rank->young_deaths > 0) {
    wait = options_.first_backoff;
    for (int i = 1; i < rank->young_deaths && wait < options_.longest_backoff; ++i) wait *= 2;
    wait = std::min(wait, options_.longest_backoff);
  }
  rank->state = Rank::State::kWaiting;
  rank->start_at = Clock::now() + wait;
}

void LocalRanksImpl::BeginStop() {
  stop_deadline_ = Clock::now() + options_.stop_grace;
  for (const auto& rank : ranks_) {
    if (rank->state == Rank::State::kWaiting) rank->state = Rank::State::kDown;
  }
}

bool LocalRanksImpl::AllGone() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [](const auto& rank) { return rank->state == Rank::State::kDown; });
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
