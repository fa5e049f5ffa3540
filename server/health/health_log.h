// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tells the log when the server stops being ready and when it is ready again, whether or not
// somebody asks for its health. Loading and draining are told by who does them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "server/health/health.h"

namespace nibble::server {

class HealthLog {
 public:
  // `health` must outlive this.
  explicit HealthLog(const Health* health,
                     std::chrono::milliseconds period = std::chrono::milliseconds(500));
  ~HealthLog();
  HealthLog(const HealthLog&) = delete;
  HealthLog& operator=(const HealthLog&) = delete;

 private:
  void Run();

  const Health* const health_;
  const std::chrono::milliseconds period_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;     // last: it uses all of the above
};

}  // namespace nibble::server
