// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/expert_recorder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/log.h"
#include "server/cli/replace_file.h"

namespace nibble::cli {

absl::StatusOr<std::unique_ptr<ExpertRecorder>> ExpertRecorder::Start(
    std::string path, Read read, std::chrono::milliseconds period) {
  absl::Status writable = CheckReplaceable(path);
  if (!writable.ok()) return Annotate(writable, "--record-expert-load");
  std::unique_ptr<ExpertRecorder> recorder(new ExpertRecorder(std::move(path), std::move(read)));
  recorder->thread_ = std::thread([raw = recorder.get(), period] { raw->Run(period); });
  return recorder;
}

void ExpertRecorder::Stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
  Write();
}

void ExpertRecorder::Run(std::chrono::milliseconds period) {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period, [this] { return stopping_; })) {
    lock.unlock();
    Write();
    lock.lock();
  }
}

void ExpertRecorder::Write() {
  const engine::ExpertLoad load = read_();
  const auto has_tokens = [](uint64_t tokens) { return tokens > 0; };
  if (std::none_of(load.tokens.begin(), load.tokens.end(), has_tokens)) return;
  const absl::Status written = ReplaceFile(path_, engine::Serialize(load));
  if (!written.ok() && !failed_) {
    log::Warning("the expert load is not recorded: {}", std::string(written.message()));
  }
  failed_ = !written.ok();  // said once for a row of failures
}

}  // namespace nibble::cli
