// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The tokens that calibration runs on: windows of a text, or text that the model itself writes
// (as Norm Tweaking, arXiv:2309.02784, section 3.2: calibration that fits the model without having
// what it was trained on).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::quantize {

inline constexpr const char* kSelfGenerated = "self-generated";

struct CalibrationOptions {
  // A text file; a file *.jsonl whose lines have a "text"; kSelfGenerated; or empty: self-generated
  // where the recipe needs calibration, none where it does not.
  std::string data;
  int64_t num_samples = 128;  // sequences, 1..65536
  int64_t length = 512;       // tokens of each, 16..; at most the model's positions are used
  uint64_t seed = 0;          // of what is self-generated
};
absl::Status Validate(const CalibrationOptions& options);

struct CalibrationTokens {
  int64_t num_samples = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;  // [num_samples, length]
};

// `options.num_samples` windows spread evenly over the text, each with the beginning-of-sequence
// token in front where the model has one. INVALID_ARGUMENT, naming file and figures, for text that
// is too short, too large (256 MiB) or not UTF-8, and for lines that are no JSON with a "text".
absl::StatusOr<CalibrationTokens> TokensOfText(const CalibrationOptions& options,
                                               const engine::Tokenizer& tokenizer,
                                               const engine::ModelConfig& config);

// Documents that `model` writes: the beginning-of-sequence token, in every other document a common
// token drawn uniformly, three to five of the most likely tokens, then samples at temperature 1
// until the model ends the document. Depends on the seed and the model alone. `progress` (may be
// null) gets tokens done and in all. RESOURCE_EXHAUSTED when memory runs out, FAILED_PRECONDITION
// when the model's logits are not finite.
absl::StatusOr<CalibrationTokens> GenerateTokens(
    const CalibrationOptions& options, const engine::Tokenizer& tokenizer, engine::Model* model,
    const std::function<void(int64_t, int64_t)>& progress, ThreadPool* pool);

// Of the sequences, with what the model can take.
int64_t CalibrationLength(const CalibrationOptions& options, const engine::ModelConfig& config);

}  // namespace nibble::quantize
