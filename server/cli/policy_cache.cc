// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/policy_cache.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "base/mapped_file.h"
#include "server/cli/fingerprint.h"
#include "server/cli/replace_file.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxFileBytes = size_t{64} << 10;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::string CacheFolder() {
  if (const std::string cache = Environment("XDG_CACHE_HOME"); !cache.empty()) {
    return cache + "/nibble";
  }
  const std::string home = Environment("HOME");
  return home.empty() ? "" : home + "/.cache/nibble";
}

PolicyCache::PolicyCache(std::string folder, std::string key)
    : folder_(std::move(folder)), key_(std::move(key)) {
  if (!folder_.empty()) {
    path_ = fmt::format("{}/all-reduce-{}.txt", folder_, Sha256(key_).substr(0, 16));
  }
}

std::optional<comm::AllReducePolicy> PolicyCache::Load() const {
  if (path_.empty()) return std::nullopt;
  const absl::StatusOr<std::string> text = ReadFile(path_, kMaxFileBytes);
  if (!text.ok()) {
    if (!absl::IsNotFound(text.status())) {
      log::Warning("the kept all-reduce choice is not used: {}",
                   std::string(text.status().message()));
    }
    return std::nullopt;
  }
  // The key, so that people can read it and two keys with one name do no harm; then the policy.
  if (text->substr(0, key_.size() + 1) != key_ + "\n") return std::nullopt;
  absl::StatusOr<comm::AllReducePolicy> policy =
      comm::ParsePolicy(std::string_view(*text).substr(key_.size() + 1));
  if (!policy.ok()) {
    log::Warning("{}: the kept all-reduce choice is not used: {}", path_,
                 std::string(policy.status().message()));
    return std::nullopt;
  }
  return *std::move(policy);
}

absl::Status PolicyCache::Store(const comm::AllReducePolicy& policy) const {
  if (path_.empty()) return absl::OkStatus();
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) return Unavailable("{}: {}", folder_, error.message());
  return ReplaceFile(path_, key_ + "\n" + comm::Serialize(policy));
}

}  // namespace nibble::cli
