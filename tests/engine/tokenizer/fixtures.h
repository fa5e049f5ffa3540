// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the tokenizer tests share: the fixtures' folders and files.
#pragma once

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/json.h"
#include "base/mapped_file.h"

namespace nibble::engine {

inline const std::vector<std::string>& FixtureNames() {
  static const std::vector<std::string> kNames = {"gpt2",      "llama3", "qwen2",   "llama2",
                                                  "metaspace", "mixed",  "spm_bpe", "spm_unigram"};
  return kNames;
}

inline std::string FixtureDir(const std::string& name) {
  return NIBBLE_SOURCE_DIR "/tests/fixtures/tokenizers/" + name;
}

inline std::string ReadFixture(const std::string& path) {
  absl::StatusOr<std::string> contents = ReadFile(path, size_t{16} << 20);
  EXPECT_TRUE(contents.ok()) << contents.status();
  return contents.ok() ? *contents : std::string();
}

inline nlohmann::json ReadJsonFixture(const std::string& path) {
  absl::StatusOr<nlohmann::json> document = ParseJson(ReadFixture(path));
  EXPECT_TRUE(document.ok()) << path << ": " << document.status();
  return document.ok() ? *document : nlohmann::json();
}

}  // namespace nibble::engine
