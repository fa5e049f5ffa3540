// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tells when files have changed: written in place, renamed over, or behind a symbolic link that
// points elsewhere now (Kubernetes swaps a directory that way). It looks at them every `period`
// (stat, no inotify: network file systems do not report), and tells once they have been the same
// for two looks, so that several files that are replaced one after the other count as one change.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace nibble {

class FileWatch {
 public:
  // `on_change` is called on a thread of the watch; while it returns false (the files could not be
  // used), it is called again every period. Changes count from here on: read the files afterwards.
  // A file that is missing is a state like any other.
  FileWatch(std::vector<std::string> paths, std::chrono::milliseconds period,
            std::function<bool()> on_change);
  ~FileWatch();
  FileWatch(const FileWatch&) = delete;
  FileWatch& operator=(const FileWatch&) = delete;

 private:
  void Run();
  std::string Look() const;

  const std::vector<std::string> paths_;
  const std::chrono::milliseconds period_;
  const std::function<bool()> on_change_;
  std::string known_;  // what the last call, or the constructor, was about; the thread's only
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace nibble
