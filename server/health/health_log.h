// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tells the log when the server stops being ready and when it is ready again, whether or not
// somebody asks for its health. Loading and draining are told by who does them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "server/health/health.h"

namespace nibble::server {

class HealthLog {
 public:
  using Tell = std::function<void(bool is_ready, const std::string& line)>;
  static void TellLog(bool is_ready, const std::string& line);

  // `health` must outlive this. `tell` is called on a thread of this.
  explicit HealthLog(const Health* health,
                     std::chrono::milliseconds period = std::chrono::milliseconds(500),
                     Tell tell = TellLog);
  ~HealthLog();
  HealthLog(const HealthLog&) = delete;
  HealthLog& operator=(const HealthLog&) = delete;

 private:
  void Run();

  const Health* const health_;
  const std::chrono::milliseconds period_;
  const Tell tell_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;     // last: it uses all of the above
};

}  // namespace nibble::server
