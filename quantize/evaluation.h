// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The optional check at the end: perplexity of a text, of the source and of what was made of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model_config.h"
#include "engine/tokenizer/tokenizer.h"
#include "quantize/recipe.h"
#include "quantize/report.h"

namespace nibble::quantize {

// The beginning-of-sequence token and the text, as `nibble eval perplexity` takes it.
// INVALID_ARGUMENT naming the file when it is too short or not UTF-8.
absl::StatusOr<std::vector<int32_t>> EvaluationTokens(const std::string& path,
                                                      const engine::Tokenizer& tokenizer,
                                                      const engine::ModelConfig& config);

struct EvaluationArgs {
  std::string source;  // model directories
  std::string output;
  Scheme scheme = Scheme::kW4A8;
  std::string data;
  std::vector<int32_t> ids;
  Isa isa = Isa::kRef;
};

// Both as a server runs them. `progress` (may be null) gets tokens done and in all, of both.
absl::StatusOr<EvaluationReport> Evaluate(const EvaluationArgs& args,
                                          const std::function<void(int64_t, int64_t)>& progress,
                                          ThreadPool* pool);

}  // namespace nibble::quantize
