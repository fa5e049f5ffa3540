// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/auth/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <utility>

#include "base/log.h"
#include "base/mapped_file.h"
#include "server/auth/authorization.h"

namespace nibble::server {
namespace {

constexpr size_t kMaxFileBytes = size_t{16} << 20;

std::string_view Trim(std::string_view line) {
  constexpr std::string_view kBlanks = " \t\r";
  const size_t first = line.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return "";
  return line.substr(first, line.find_last_not_of(kBlanks) - first + 1);
}

absl::Status CannotDigest() {
  return absl::InternalError("API keys cannot be used: OpenSSL has no SHA-256 (see openssl.cnf)");
}

}  // namespace

// A configuration of OpenSSL may leave it without providers.
std::optional<ApiKeys::Digest> ApiKeys::DigestOf(std::string_view key) {
  Digest digest = {};
  if (EVP_Digest(key.data(), key.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1) {
    return std::nullopt;
  }
  return digest;
}

absl::StatusOr<ApiKeys::Digests> ApiKeys::ReadKeyFile() const {
  NIBBLE_ASSIGN_OR_RETURN(std::string text, ReadFile(file_, kMaxFileBytes));
  Digests digests;
  absl::Status problem;
  size_t number = 0;
  for (std::string_view rest = text; !rest.empty() && problem.ok();) {
    const size_t end = rest.find('\n');
    const std::string_view line = Trim(rest.substr(0, end));
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    ++number;
    if (line.empty() || line.front() == '#') continue;
    problem = Annotate(CheckApiKey(line), fmt::format("--api-key-file {} line {}", file_, number));
    if (digests.size() == kMaxKeys) {
      problem =
          InvalidArgument("--api-key-file {} has more than {} keys, the limit", file_, kMaxKeys);
    }
    const std::optional<Digest> digest = DigestOf(line);
    if (!digest.has_value()) problem = CannotDigest();
    digests.push_back(digest.value_or(Digest()));
  }
  OPENSSL_cleanse(text.data(), text.size());
  NIBBLE_RETURN_IF_ERROR(problem);
  if (digests.empty()) return InvalidArgument("--api-key-file {} has no key", file_);
  return digests;
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Create(const ApiKeyConfig& config) {
  std::unique_ptr<ApiKeys> keys(new ApiKeys(config.file));
  if (config.keys.size() > kMaxKeys) {
    return InvalidArgument("{} keys are given, the limit is {}", config.keys.size(), kMaxKeys);
  }
  for (const std::string& key : config.keys) {
    NIBBLE_RETURN_IF_ERROR(Annotate(CheckApiKey(key), "--api-key, or NIBBLE_API_KEY"));
    const std::optional<Digest> digest = DigestOf(key);
    if (!digest.has_value()) return CannotDigest();
    keys->given_.push_back(*digest);
  }
  keys->all_ = std::make_shared<const Digests>(keys->given_);
  if (config.file.empty()) {
    if (config.keys.empty()) return InvalidArgument("no API key is given");
    return keys;
  }
  // Before the first reading, so that no change falls between; one that early is read twice.
  keys->watch_ = std::make_unique<FileWatch>(std::vector<std::string>{config.file}, config.period,
                                             [raw = keys.get()] { return raw->Reload(); });
  NIBBLE_ASSIGN_OR_RETURN(Digests digests, keys->ReadKeyFile());
  keys->Use(std::move(digests));
  return keys;
}

ApiKeys::~ApiKeys() { watch_.reset(); }

bool ApiKeys::Reload() {
  absl::StatusOr<Digests> digests = ReadKeyFile();
  file_is_stale_.store(!digests.ok());
  if (!digests.ok()) {
    // It is tried again until it succeeds, and told once.
    if (std::string problem(digests.status().message()); problem != problem_) {
      num_file_errors_.fetch_add(1);
      log::Error("the file of API keys has changed, and the old keys stay valid: {}", problem);
      problem_ = std::move(problem);
    }
    return false;
  }
  problem_.clear();
  log::Info("--api-key-file {} was read again: {} keys", file_, digests->size());
  Use(*std::move(digests));
  return true;
}

void ApiKeys::Use(Digests of_file) {
  of_file.insert(of_file.end(), given_.begin(), given_.end());
  auto all = std::make_shared<const Digests>(std::move(of_file));
  const std::lock_guard lock(mutex_);
  all_ = std::move(all);
}

bool ApiKeys::Contains(std::string_view key) const {
  std::shared_ptr<const Digests> all;
  {
    const std::lock_guard lock(mutex_);
    all = all_;
  }
  const std::optional<Digest> digest = DigestOf(key);
  if (!digest.has_value()) return false;
  int found = 0;
  for (const Digest& valid : *all) {
    found |= static_cast<int>(CRYPTO_memcmp(digest->data(), valid.data(), digest->size()) == 0);
  }
  return found != 0;
}

size_t ApiKeys::size() const {
  const std::lock_guard lock(mutex_);
  return all_->size();
}

}  // namespace nibble::server
