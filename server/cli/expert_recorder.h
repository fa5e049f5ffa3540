// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Keeps a file with the tokens that went to each expert since the server started.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/status.h"
#include "engine/moe/expert_load.h"

namespace nibble::cli {

class ExpertRecorder {
 public:
  using Read = std::function<engine::ExpertLoad()>;

  // Writes what `read` gives to `path` every `period`, and a last time in Stop(). The file is
  // replaced by a whole one; without any token it stays as it is, so that a start that fails loses
  // nothing. UNAVAILABLE when files cannot be made there. `read` is called from a thread of its own
  // until Stop().
  static absl::StatusOr<std::unique_ptr<ExpertRecorder>> Start(
      std::string path, Read read, std::chrono::milliseconds period = std::chrono::minutes(1));
  ~ExpertRecorder() { Stop(); }

  void Stop();  // idempotent

 private:
  ExpertRecorder(std::string path, Read read) : path_(std::move(path)), read_(std::move(read)) {}
  void Run(std::chrono::milliseconds period);
  void Write();  // of one thread at a time

  const std::string path_;
  const Read read_;
  bool failed_ = false;  // warned of; Write's
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace nibble::cli
