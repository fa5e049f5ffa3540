// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/request_log/request_log.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "base/log.h"

namespace nibble::server {
namespace {

// A pipe with room takes so much at once without blocking.
constexpr size_t kMaxWrite = PIPE_BUF;

int64_t NowNs() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

int64_t BytesOf(const RequestRecord& record) {
  const RequestTrace::Facts& facts = record.facts;
  return static_cast<int64_t>(sizeof(RequestRecord) + record.request_id.size() +
                              record.route.size() + record.peer.size() + facts.sampling.size() +
                              facts.prompt.size() + facts.output.size() +
                              facts.finish_reasons.size() * sizeof(std::string));
}

absl::StatusOr<int> OpenToAppend(const std::string& path) {
  // Without O_NONBLOCK the start would wait for somebody who reads a FIFO.
  const int fd =
      ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);
  if (fd >= 0) return fd;
  if (errno == ENXIO) {
    return InvalidArgument("--request-log {}: it is a FIFO that nobody reads", path);
  }
  return InvalidArgument("--request-log {}: {}", path, std::strerror(errno));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RequestLog>> RequestLog::Open(const RequestLogConfig& config) {
  int fd = STDERR_FILENO;
  if (config.path != "-") {
    NIBBLE_ASSIGN_OR_RETURN(fd, OpenToAppend(config.path));
  }
  return std::unique_ptr<RequestLog>(new RequestLog(config, fd));
}

RequestLog::RequestLog(const RequestLogConfig& config, int fd)
    : config_(config), fd_(fd), thread_([this] { Run(); }) {}

RequestLog::~RequestLog() {
  give_up_ns_.store(NowNs() + std::chrono::nanoseconds(config_.last_writes).count());
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
  if (config_.path != "-") ::close(fd_);
}

void RequestLog::Add(RequestRecord record) {
  const int64_t bytes = BytesOf(record);
  {
    const std::lock_guard lock(mutex_);
    if (queued_bytes_ + bytes <= config_.max_queued_bytes) {
      queued_bytes_ += bytes;
      queue_.push_back(std::move(record));
    } else {
      num_dropped_.fetch_add(1);
    }
  }
  wake_.notify_one();
}

void RequestLog::Reopen() {
  {
    const std::lock_guard lock(mutex_);
    reopen_.store(true);
  }
  wake_.notify_one();
}

void RequestLog::Run() {
  for (bool stop = false; !stop;) {
    std::deque<RequestRecord> batch;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, config_.period,
                     [this] { return stop_ || reopen_.load() || !queue_.empty(); });
      batch.swap(queue_);
      stop = stop_;
    }
    ReopenIfMoved();
    WriteBatch(std::move(batch));
    NoteDropped();
  }
}

// Where logrotate renamed the file, its name leads elsewhere or nowhere. What is queued by then
// goes into the new one.
void RequestLog::ReopenIfMoved() {
  const bool asked = reopen_.exchange(false);
  if (config_.path == "-") return;
  struct stat named = {};
  struct stat opened = {};
  const bool same = ::stat(config_.path.c_str(), &named) == 0 && ::fstat(fd_, &opened) == 0 &&
                    named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
  if (same) open_failing_ = false;
  if (same && !asked) return;
  const absl::StatusOr<int> fd = OpenToAppend(config_.path);
  if (fd.ok()) {
    ::close(std::exchange(fd_, *fd));
    torn_ = false;
    write_failing_ = false;
    open_failing_ = false;
  } else if (!std::exchange(open_failing_, true)) {
    log::Error("{}; the request log goes on in the file it had",
               std::string(fd.status().message()));
  }
}

void RequestLog::WriteBatch(std::deque<RequestRecord> batch) {
  // Line by line: what is lost is known, and a full disk leaves whole lines.
  for (; !batch.empty(); batch.pop_front()) {
    if (reopen_.load()) ReopenIfMoved();
    if (!WriteLine(FormatRecord(batch.front(), config_.with_texts))) num_dropped_.fetch_add(1);
    const std::lock_guard lock(mutex_);
    queued_bytes_ -= BytesOf(batch.front());
  }
}

void RequestLog::NoteDropped() {
  const int64_t count = num_dropped_.load();
  const int64_t lost = count - num_dropped_told_;
  if (lost == 0 || !WriteLine(fmt::format("{{\"event\":\"dropped\",\"lines\":{}}}", lost))) return;
  num_dropped_told_ = count;
  log::Warning("the request log has lost {} lines: its file takes them too slowly, or no more",
               lost);
}

bool RequestLog::WriteLine(std::string line) {
  line += '\n';
  if (torn_ && !Write("\n")) return false;
  return Write(line);
}

bool RequestLog::Write(std::string_view bytes) {
  for (bool begun = false; !bytes.empty(); begun = true) {
    if (!WaitForRoom()) {
      torn_ = torn_ || begun;
      return false;
    }
    const ssize_t written = ::write(fd_, bytes.data(), std::min(bytes.size(), kMaxWrite));
    if (written < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (written <= 0) {
      torn_ = torn_ || begun;
      if (!std::exchange(write_failing_, true)) {
        log::Error("the request log cannot be written to {}: {}", config_.path,
                   std::strerror(errno));
      }
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  torn_ = false;
  write_failing_ = false;
  return true;
}

// A file always has room; the reader of a pipe may take its time, but not the server's.
bool RequestLog::WaitForRoom() const {
  for (;;) {
    const int64_t give_up_ns = give_up_ns_.load();
    const bool give_up = give_up_ns >= 0 && NowNs() > give_up_ns;
    pollfd state = {.fd = fd_, .events = POLLOUT, .revents = 0};
    // Each of many lines comes here: once it is over, none waits.
    if (::poll(&state, 1, give_up ? 0 : 100) != 0) return true;  // errors are write's to tell
    // A line is lost rather than the new name: who stands still here may do so for good.
    if (give_up || reopen_.load()) return false;
  }
}

}  // namespace nibble::server
