// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A model directory of a few thousand weights that can be calibrated: a model fixture with a
// tokenizer of single letters.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "nlohmann/json.hpp"

namespace nibble::quantize::testing {

inline void MakeTinyTokenizer(const std::string& dir) {
  nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}, {" ", 3}, {".", 4}};
  for (char letter = 'a'; letter <= 'z'; ++letter) vocab[std::string(1, letter)] = 5 + letter - 'a';
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", nlohmann::json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder", {{"type", "Fuse"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  std::ofstream(dir + "/tokenizer.json") << tokenizer;
}

// `name` is one of tests/fixtures/models.
inline void MakeTinyModel(const std::string& name, const std::string& dir) {
  namespace fs = std::filesystem;
  const std::string fixture = NIBBLE_SOURCE_DIR "/tests/fixtures/models/" + name;
  fs::create_directories(dir);
  for (const char* file : {"config.json", "model.safetensors"}) {
    fs::copy_file(fixture + "/" + file, dir + "/" + file);
  }
  MakeTinyTokenizer(dir);
}

// Text for it, a few thousand tokens.
inline std::string TinyText() {
  std::string text;
  for (int i = 0; i < 400; ++i) {
    text += static_cast<char>('a' + i * i % 26);
    text += " fox jumps over.";
  }
  return text;
}

}  // namespace nibble::quantize::testing
