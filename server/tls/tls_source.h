// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The server's certificates, read again when their files change: new connections get the new ones,
// open connections keep theirs. Files that do not fit together leave the old ones in use, and the
// log says why.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "base/file_watch.h"
#include "base/status.h"
#include "server/tls/tls_material.h"
#include "server/tls/tls_options.h"

namespace nibble::server {

class TlsSource {
 public:
  // `period`: how often the files are looked at.
  static absl::StatusOr<std::unique_ptr<TlsSource>> Create(
      const TlsOptions& options, std::chrono::milliseconds period = std::chrono::seconds(1));
  ~TlsSource();

  const TlsOptions& options() const { return options_; }

  // All thread-safe.
  std::shared_ptr<ssl_ctx_st> context() const;
  struct Current {
    std::shared_ptr<const TlsMaterial> material;
    uint64_t generation = 0;  // counts changes, from 1 on
  };
  Current current() const;

 private:
  explicit TlsSource(const TlsOptions& options) : options_(options) {}
  absl::Status Load();
  bool Reload();

  const TlsOptions options_;
  mutable std::mutex mutex_;  // guards the two below
  Current current_;
  std::shared_ptr<ssl_ctx_st> context_;
  std::string problem_;               // as told last; the watch's only
  std::unique_ptr<FileWatch> watch_;  // last: its thread uses all of the above
};

}  // namespace nibble::server
