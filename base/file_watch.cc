// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/file_watch.h"

#include <sys/stat.h>

#include <utility>

#include "fmt/core.h"

namespace nibble {

FileWatch::FileWatch(std::vector<std::string> paths, std::chrono::milliseconds period,
                     std::function<bool()> on_change)
    : paths_(std::move(paths)),
      period_(period),
      on_change_(std::move(on_change)),
      known_(Look()),
      thread_([this] { Run(); }) {}

FileWatch::~FileWatch() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::string FileWatch::Look() const {
  std::string seen;
  for (const std::string& path : paths_) {
    struct stat file = {};
    if (::stat(path.c_str(), &file) != 0) {
      seen += "none;";
      continue;
    }
    seen += fmt::format("{}:{}:{}:{}.{}:{}.{};", file.st_dev, file.st_ino, file.st_size,
                        file.st_mtim.tv_sec, file.st_mtim.tv_nsec, file.st_ctim.tv_sec,
                        file.st_ctim.tv_nsec);
  }
  return seen;
}

void FileWatch::Run() {
  std::string last = known_;
  bool again = false;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period_, [this] { return stop_; })) {
    lock.unlock();
    std::string seen = Look();
    if (seen == last && (seen != known_ || again)) {
      known_ = seen;
      again = !on_change_();
    }
    last = std::move(seen);
    lock.lock();
  }
}

}  // namespace nibble
