// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Calibration on a text file.
#include <algorithm>
#include <string_view>
#include <utility>

#include "fmt/ranges.h"

#include "base/json.h"
#include "base/mapped_file.h"
#include "quantize/calibration.h"

namespace nibble::quantize {
namespace {

constexpr size_t kMaxTextBytes = size_t{256} << 20;
constexpr int64_t kMaxSamples = 1 << 16;
constexpr int64_t kMinLength = 16;
constexpr int64_t kMaxLength = 1 << 20;

// The documents of a file: its lines' "text", or all of it.
absl::StatusOr<std::vector<std::string>> ReadDocuments(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(std::string content, ReadFile(path, kMaxTextBytes));
  std::vector<std::string> documents;
  if (!path.ends_with(".jsonl")) {
    documents.push_back(std::move(content));
    return documents;
  }
  int64_t line_number = 0;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    absl::StatusOr<nlohmann::json> json = ParseJson(line);
    if (!json.ok()) return Annotate(json.status(), fmt::format("{}:{}", path, line_number));
    if (!json->is_object() || !json->contains("text") || !(*json)["text"].is_string()) {
      return InvalidArgument(
          "{}:{}: a line of a .jsonl file must be an object with a string 'text'", path,
          line_number);
    }
    documents.push_back((*json)["text"].get<std::string>());
  }
  return documents;
}

}  // namespace

absl::Status Validate(const CalibrationOptions& options) {
  std::vector<std::string> violations;
  if (options.num_samples < 1 || options.num_samples > kMaxSamples) {
    violations.push_back(fmt::format("calibration samples are {}, the limits are 1 and {}",
                                     options.num_samples, kMaxSamples));
  }
  if (options.length < kMinLength || options.length > kMaxLength) {
    violations.push_back(fmt::format("calibration length is {} tokens, the limits are {} and {}",
                                     options.length, kMinLength, kMaxLength));
  }
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

int64_t CalibrationLength(const CalibrationOptions& options, const engine::ModelConfig& config) {
  return std::min(options.length, config.max_position_embeddings);
}

absl::StatusOr<CalibrationTokens> TokensOfText(const CalibrationOptions& options,
                                               const engine::Tokenizer& tokenizer,
                                               const engine::ModelConfig& config) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> documents, ReadDocuments(options.data));
  std::vector<int32_t> stream;
  for (const std::string& document : documents) {
    absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(document, false);
    if (!ids.ok()) return Annotate(ids.status(), options.data);
    if (config.bos_token_id && !stream.empty()) stream.push_back(*config.bos_token_id);
    stream.insert(stream.end(), ids->begin(), ids->end());
  }
  for (const int32_t id : stream) {
    if (id >= 0 && id < config.vocab_size) continue;
    return InvalidArgument("{}: token id {}, the model's vocabulary has {}", options.data, id,
                           config.vocab_size);
  }

  CalibrationTokens tokens = {.num_samples = options.num_samples,
                              .length = CalibrationLength(options, config)};
  const int64_t window = tokens.length - (config.bos_token_id ? 1 : 0);
  const int64_t num_windows = static_cast<int64_t>(stream.size()) / window;
  if (num_windows < tokens.num_samples) {
    return InvalidArgument(
        "{}: {} tokens are too few for {} samples of {} tokens: give more text, or fewer samples "
        "(it has {}) or shorter ones",
        options.data, stream.size(), tokens.num_samples, tokens.length, num_windows);
  }
  for (int64_t i = 0; i < tokens.num_samples; ++i) {
    if (config.bos_token_id) tokens.ids.push_back(*config.bos_token_id);
    const auto begin = stream.begin() + i * num_windows / tokens.num_samples * window;
    tokens.ids.insert(tokens.ids.end(), begin, begin + window);
  }
  return tokens;
}

}  // namespace nibble::quantize
