// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The keys that open this server. Only their SHA-256 digests are kept here, and no key is in a log
// or in an error message. Keys of options and of the environment stay where they came from: in the
// configuration and in the process's environment; those of a file are nowhere else.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_watch.h"
#include "base/status.h"

namespace nibble::server {

struct ApiKeyConfig {
  std::vector<std::string> keys;
  // One key a line; empty lines and those that begin with # are skipped. Read again when it
  // changes; "": none. A changed file that cannot be read, or that has a bad line or no key, leaves
  // the keys as they were, and the log says why.
  std::string file;
  std::chrono::milliseconds period = std::chrono::seconds(1);  // how often the file is looked at

  bool empty() const { return keys.empty() && file.empty(); }
};

// Thread-safe.
class ApiKeys {
 public:
  static constexpr size_t kMaxKeys = 4096;

  // INVALID_ARGUMENT naming option or file and line, never a part of a key.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Create(const ApiKeyConfig& config);
  ~ApiKeys();

  // The time it takes says nothing about the keys, but for how many there are: digests are
  // compared, all of them, without an early end.
  bool Contains(std::string_view key) const;
  size_t size() const;
  // Of the file, since the start: how often it changed to something that cannot be used; and
  // whether it is like that now, so that the keys before it are in use.
  int64_t num_file_errors() const { return num_file_errors_.load(); }
  bool file_is_stale() const { return file_is_stale_.load(); }

 private:
  using Digest = std::array<unsigned char, 32>;
  using Digests = std::vector<Digest>;

  explicit ApiKeys(std::string file) : file_(std::move(file)) {}
  static std::optional<Digest> DigestOf(std::string_view key);  // none: OpenSSL has no SHA-256
  absl::StatusOr<Digests> ReadKeyFile() const;
  void Use(Digests of_file);
  bool Reload();

  const std::string file_;
  Digests given_;             // by options; never changes once created
  mutable std::mutex mutex_;  // guards all_
  std::shared_ptr<const Digests> all_;
  std::string problem_;  // of the file, as told last; the watch's only
  std::atomic<int64_t> num_file_errors_{0};
  std::atomic<bool> file_is_stale_{false};
  std::unique_ptr<FileWatch> watch_;  // last: its thread uses all of the above
};

}  // namespace nibble::server
