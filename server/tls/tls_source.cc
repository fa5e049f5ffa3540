// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/tls/tls_source.h"

#include <string>
#include <utility>
#include <vector>

#include "base/log.h"

namespace nibble::server {

absl::StatusOr<std::unique_ptr<TlsSource>> TlsSource::Create(const TlsOptions& options,
                                                             std::chrono::milliseconds period) {
  std::unique_ptr<TlsSource> source(new TlsSource(options));
  std::vector<std::string> paths = {options.cert_file, options.key_file};
  if (!options.ca_file.empty()) paths.push_back(options.ca_file);
  // Before the first reading, so that no change falls between; a change that early is read twice.
  auto watch = std::make_unique<FileWatch>(std::move(paths), period,
                                           [raw = source.get()] { return raw->Reload(); });
  source->watch_ = std::move(watch);
  NIBBLE_RETURN_IF_ERROR(source->Load());
  return source;
}

TlsSource::~TlsSource() { watch_.reset(); }

absl::Status TlsSource::Load() {
  NIBBLE_ASSIGN_OR_RETURN(TlsMaterial read, ReadTlsMaterial(options_));
  NIBBLE_ASSIGN_OR_RETURN(std::shared_ptr<ssl_ctx_st> context,
                          MakeServerContext(read, options_.clients));
  auto material = std::make_shared<const TlsMaterial>(std::move(read));
  const std::lock_guard lock(mutex_);
  if (current_.material != nullptr && *current_.material == *material) return absl::OkStatus();
  log::Info("TLS certificate {}, until {}", material->subject, material->not_after);
  current_.material = std::move(material);
  ++current_.generation;
  context_ = std::move(context);
  return absl::OkStatus();
}

bool TlsSource::Reload() {
  const absl::Status loaded = Load();
  std::string problem(loaded.message());
  // It is tried again until it succeeds, and told once.
  if (!loaded.ok() && problem != problem_) {
    log::Error("the TLS files have changed, and the old ones stay in use: {}", problem);
  }
  problem_ = std::move(problem);
  return loaded.ok();
}

std::shared_ptr<ssl_ctx_st> TlsSource::context() const {
  const std::lock_guard lock(mutex_);
  return context_;
}

TlsSource::Current TlsSource::current() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

}  // namespace nibble::server
