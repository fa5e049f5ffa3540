// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One line of JSON for each request, at its end. Whoever answers requests never waits for a disk: a
// thread of its own writes, from a bounded queue; what does not fit is counted, and the count is a
// line of its own.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "base/status.h"
#include "server/request_log/request_trace.h"

namespace nibble::server {

struct RequestRecord {
  std::string protocol;  // "http", "grpc"
  std::string request_id;
  std::string route;   // HTTP path of the route, or gRPC method
  std::string method;  // of HTTP; empty: none
  int status = 0;      // of HTTP, or gRPC's code
  std::string peer;    // address and port; empty: unknown
  double e2e_seconds = 0.0;
  RequestTrace::Facts facts;
  std::chrono::system_clock::time_point end = std::chrono::system_clock::now();
};

// Without a newline. `with_texts`: prompt and output too.
std::string FormatRecord(const RequestRecord& record, bool with_texts);

struct RequestLogConfig {
  std::string path;         // "-": standard error
  bool with_texts = false;  // prompts and outputs; without, nothing of them is in the log
  int64_t max_queued_bytes = int64_t{32} << 20;
  // How often it is looked whether the file is still there under its name.
  std::chrono::milliseconds period = std::chrono::seconds(1);
  // How long a reader that stands still may hold the end up.
  std::chrono::milliseconds last_writes = std::chrono::seconds(2);
};

// Thread-safe.
class RequestLog {
 public:
  // Opens the file to append to; the error names it and says why it cannot be opened.
  static absl::StatusOr<std::unique_ptr<RequestLog>> Open(const RequestLogConfig& config);
  // Writes what is queued. After config.last_writes nothing is waited for: what the file does not
  // take at once is lost.
  ~RequestLog();
  RequestLog(const RequestLog&) = delete;
  RequestLog& operator=(const RequestLog&) = delete;

  // Never blocks.
  void Add(RequestRecord record);
  // Opens the file by its name again, soon: for SIGHUP. A file that was renamed or removed is
  // noticed anyway.
  void Reopen();
  bool with_texts() const { return config_.with_texts; }
  int64_t num_dropped() const { return num_dropped_.load(); }

 private:
  RequestLog(const RequestLogConfig& config, int fd);

  void Run();
  void ReopenIfMoved();
  void WriteBatch(std::deque<RequestRecord> batch);
  void NoteDropped();
  bool WriteLine(std::string line);
  bool Write(std::string_view bytes);
  bool WaitForRoom() const;

  const RequestLogConfig config_;
  // The thread's only, once it runs:
  int fd_;
  bool torn_ = false;           // the last write ended within a line
  bool write_failing_ = false;  // and the log has been told
  bool open_failing_ = false;   // likewise
  int64_t num_dropped_told_ = 0;

  std::atomic<bool> reopen_{false};
  std::atomic<int64_t> num_dropped_{0};
  std::atomic<int64_t> give_up_ns_{-1};  // while it is destroyed: the end of all waiting

  std::mutex mutex_;  // guards all below but thread_
  std::condition_variable wake_;
  std::deque<RequestRecord> queue_;
  int64_t queued_bytes_ = 0;  // and of what is being written
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace nibble::server
