// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// An engine and a tokenizer whose behaviour a front-end test dictates.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/utf8.h"
#include "engine/engine.h"

namespace nibble::server::testing {

// One token per byte, id = byte value; id 256 is the beginning, 257 the end of a text.
class FakeTokenizer final : public engine::Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override {
    if (!IsValidUtf8(text)) return InvalidArgument("the text is not valid UTF-8");
    std::vector<int32_t> ids;
    if (add_special_tokens) ids.push_back(256);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     bool skip_special_tokens) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab_size()) return InvalidArgument("token id {} is unknown", id);
      if (id < 256) {
        bytes.push_back(static_cast<char>(id));
      } else if (!skip_special_tokens) {
        bytes += IdToToken(id);
      }
    }
    return ReplaceInvalidUtf8(bytes);
  }
  std::string TokenBytes(int32_t id) const override {
    return id < 256 ? std::string(1, static_cast<char>(id)) : std::string();
  }
  bool IsSpecial(int32_t id) const override { return id >= 256; }
  std::optional<int32_t> TokenToId(std::string_view) const override { return std::nullopt; }
  std::string IdToToken(int32_t id) const override {
    if (id == 256) return "<s>";
    if (id == 257) return "</s>";
    return TokenBytes(id);
  }
  int64_t vocab_size() const override { return 258; }
};

// Keeps what is submitted; the test plays the engine thread.
class FakeEngine final : public engine::Engine {
 public:
  FakeEngine() {
    config_.sampling_limits.vocab_size = 258;
    config_.sampling_limits.max_model_len = 64;
  }

  absl::StatusOr<std::vector<engine::RequestId>> Submit(
      std::vector<engine::EngineRequest> requests) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!submit_status.ok()) return submit_status;
    std::vector<engine::RequestId> ids;
    for (engine::EngineRequest& request : requests) {
      if (absl::Status status = request.sampling.Validate(config_.sampling_limits); !status.ok()) {
        return status;
      }
    }
    for (engine::EngineRequest& request : requests) {
      ids.push_back(next_id_);
      requests_.emplace(next_id_++, std::move(request));
    }
    return ids;
  }
  void Cancel(engine::RequestId id) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_.insert(id);
  }
  engine::EngineStats Stats() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }
  const engine::EngineConfig& config() const override { return config_; }
  absl::Status Health() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return health;
  }
  engine::EngineProgress Progress() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return progress_;
  }
  absl::Status Drain(int64_t) override { return absl::OkStatus(); }
  void Stop() override {}

  // What arrived so far, in order of submission.
  size_t num_requests() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return requests_.size();
  }
  engine::EngineRequest request(engine::RequestId id) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return requests_.at(id);
  }
  size_t num_cancelled() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cancelled_.size();
  }
  // While a server is asking for it. What was said is kept: the distribution's absl counts a
  // Status's copies where ThreadSanitizer does not look, so that freeing it here is a race to it.
  void SetHealth(absl::Status status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    said_.push_back(std::exchange(health, std::move(status)));
  }
  void SetStats(const engine::EngineStats& stats) {
    const std::lock_guard<std::mutex> lock(mutex_);
    stats_ = stats;
  }
  void SetProgress(const engine::EngineProgress& progress) {
    const std::lock_guard<std::mutex> lock(mutex_);
    progress_ = progress;
  }
  // Before requests arrive.
  engine::EngineConfig* mutable_config() { return &config_; }
  void Emit(engine::RequestId id, engine::RequestOutput output) {
    std::shared_ptr<engine::OutputSink> sink;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      sink = requests_.at(id).sink;
      if (output.finish_reason.has_value()) requests_.at(id).sink.reset();
    }
    if (sink != nullptr) sink->OnOutput(std::move(output));
  }

  absl::Status submit_status;  // set before requests arrive
  absl::Status health;

 private:
  mutable std::mutex mutex_;
  std::vector<absl::Status> said_;
  engine::EngineConfig config_;
  engine::EngineStats stats_;
  engine::EngineProgress progress_;
  std::map<engine::RequestId, engine::EngineRequest> requests_;
  std::set<engine::RequestId> cancelled_;
  engine::RequestId next_id_ = 0;
};

}  // namespace nibble::server::testing
