// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/ranks/local_rank.h"

#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <span>

#include "base/log.h"
#include "comm/ranks/rank_process.h"

namespace nibble::comm {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kReapPeriod{1};
// A process that closed its channel is usually about to end: what it ends with is worth a wait.
constexpr milliseconds kCloseToEnd{500};
// Killed and not gone after so long: it hangs in the kernel. Its rank goes on without it.
constexpr milliseconds kKillToEnd{2'000};

}  // namespace

std::string LocalRank::Describe() const {
  const pid_t pid = pid_;
  return pid == 0 ? fmt::format("rank {}", number_) : fmt::format("rank {} (pid {})", number_, pid);
}

void LocalRank::Start(RankHub::Observer* observer) {
  observer_ = observer;
  state_ = State::kWaiting;
  start_at_ = Clock::now();
}

void LocalRank::Restart(std::string why) {
  if (stop_deadline_) return;
  switch (state_) {
    case State::kDown:
      return StartLater();
    case State::kWaiting:
      return;
    case State::kUp:
      End(LossReason::kFailed, std::move(why), /*kill=*/true);
      restart_ = true;
      return;
    case State::kEnding:
      restart_ = true;
      return;
  }
}

// At most one read a turn: a rank that sends much does not keep the others waiting.
void LocalRank::Receive() {
  if (state_ != State::kUp) return;
  const std::span<char> space = reader_.Space();
  const ssize_t received = sender_.Receive(space);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (received <= 0) return End(LossReason::kFailed, "closed its channel", /*kill=*/false);
  reader_.Received(static_cast<size_t>(received));
  Frame frame;
  while (state_ == State::kUp) {
    const absl::StatusOr<bool> whole = reader_.Next(&frame);
    if (!whole.ok()) {
      return End(LossReason::kFailed, std::string(whole.status().message()), /*kill=*/true);
    }
    if (!*whole) return;
    if (!stop_deadline_) observer_->OnFrame(number_, std::move(frame));
  }
}

void LocalRank::Step() {
  switch (state_) {
    case State::kDown:
      break;
    case State::kWaiting:
      if (Clock::now() >= start_at_) StartProcess();
      break;
    case State::kUp:
      stop_deadline_ ? StepToStop() : CheckReading();
      break;
    case State::kEnding:
      Reap();
      break;
  }
  std::erase_if(hanging_, [](pid_t pid) { return ::waitpid(pid, nullptr, WNOHANG) != 0; });
}

LocalRank::Clock::time_point LocalRank::NextStep() const {
  auto next = Clock::time_point::max();
  switch (state_) {
    case State::kDown:
      break;
    case State::kWaiting:
      next = start_at_;
      break;
    case State::kUp:
      if (stop_deadline_) next = *stop_deadline_;
      if (const auto waiting = sender_.waiting()) {
        next = std::min(next, waiting->since + options_.send_timeout);
      }
      break;
    case State::kEnding:
      next = Clock::now() + kReapPeriod;
      break;
  }
  return next;
}

void LocalRank::Stop(Clock::time_point deadline) {
  stop_deadline_ = deadline;
  if (state_ == State::kWaiting) state_ = State::kDown;
}

void LocalRank::StartProcess() {
  std::vector<std::string> argv = options_.command(number_);
  argv.insert(argv.end(), {"--control-fd", std::to_string(kRankControlFd)});
  absl::StatusOr<RankProcess> process = StartRankProcess(argv);
  started_ = Clock::now();
  if (!process.ok()) {
    log::Error("rank {}: {}", number_, std::string(process.status().message()));
    ++young_deaths_;
    return StartLater();
  }
  pid_ = process->pid;
  reader_ = FrameReader();
  restart_ = false;
  killed_ = false;
  state_ = State::kUp;
  sender_.Open(process->socket);
  observer_->OnUp(number_);
}

void LocalRank::StartLater() {
  milliseconds wait{0};
  if (young_deaths_ > 0) {
    wait = options_.first_backoff;
    for (int i = 1; i < young_deaths_ && wait < options_.longest_backoff; ++i) wait *= 2;
    wait = std::min(wait, options_.longest_backoff);
  }
  state_ = State::kWaiting;
  start_at_ = Clock::now() + wait;
}

void LocalRank::CheckReading() {
  const auto waiting = sender_.waiting();
  if (!waiting) return;
  const auto silence = Clock::now() - waiting->since;
  if (silence >= options_.send_timeout || waiting->num_bytes > options_.max_unread_bytes) {
    End(LossReason::kSilent,
        fmt::format("does not read its channel: {} bytes wait, nothing was taken for {} ms",
                    waiting->num_bytes, std::chrono::floor<milliseconds>(silence).count()),
        /*kill=*/true);
  }
}

// It reads what waits for it, then an end of file, and ends by itself; or it does not.
void LocalRank::StepToStop() {
  if (Clock::now() >= *stop_deadline_) {
    log::Warning("{} did not end within {} ms: killed", Describe(), options_.stop_grace.count());
    End(LossReason::kSilent, "did not end", /*kill=*/true);
  } else if (!sender_.waiting()) {
    sender_.ShutDown();
  }
}

void LocalRank::End(LossReason reason, std::string why, bool kill) {
  sender_.Close();
  state_ = State::kEnding;
  why_ = std::move(why);
  reason_ = reason;
  patience_ = std::max(Clock::now() + kCloseToEnd, stop_deadline_.value_or(Clock::now()));
  if (kill) Kill();
}

void LocalRank::Kill() {
  ::kill(pid_, SIGKILL);
  killed_ = true;
  patience_ = Clock::now() + kKillToEnd;
}

void LocalRank::Reap() {
  int status = 0;
  const pid_t reaped = ::waitpid(pid_, &status, WNOHANG);
  if (reaped == pid_) {
    // What a process that we killed ended with says nothing.
    if (killed_) return Ended(reason_, why_ + ": killed");
    return Ended(WIFSIGNALED(status) ? LossReason::kKilled : LossReason::kExited,
                 DescribeEnd(status));
  }
  if (reaped < 0 && errno != EINTR) return Ended(reason_, why_ + "; its exit status was lost");
  if (Clock::now() < patience_) return;
  if (!killed_) return Kill();
  hanging_.push_back(pid_);
  Ended(reason_, why_ + ": killed, but it hangs in the kernel");
}

void LocalRank::Ended(LossReason reason, const std::string& how) {
  const std::string who = Describe();
  pid_ = 0;
  state_ = State::kDown;
  const bool young = Clock::now() - started_ < options_.young;
  young_deaths_ = young ? young_deaths_ + 1 : 0;
  if (stop_deadline_) return;
  // Before the observer is called: it may ask again.
  if (restart_) StartLater();
  observer_->OnDown(number_, reason, fmt::format("{}: {}", who, how));
}

}  // namespace nibble::comm
