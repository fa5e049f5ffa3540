// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What `--all-reduce auto` measured, kept from one start to the next: a file for every combination
// of what the figures depend on, in XDG_CACHE_HOME/nibble or ~/.cache/nibble. A cache: what is not
// there, cannot be read or makes no sense is measured anew.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"
#include "comm/all_reduce.h"

namespace nibble::cli {

// The folder of this user's environment; empty when it says none.
std::string CacheFolder();

class PolicyCache {
 public:
  // `key`: one line with everything that the figures depend on. An empty folder keeps nothing.
  PolicyCache(std::string folder, std::string key);

  std::optional<comm::AllReducePolicy> Load() const;
  // Written whole or not at all.
  absl::Status Store(const comm::AllReducePolicy& policy) const;
  const std::string& path() const { return path_; }  // empty: nothing is kept

 private:
  std::string folder_;
  std::string key_;
  std::string path_;
};

}  // namespace nibble::cli
