// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// tokenizer.json, the format of Hugging Face `tokenizers`.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::engine {

// The contents of a model directory's files; `config` (tokenizer_config.json) may be empty. Errors
// name file and element.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(std::string_view json,
                                                             std::string_view config);

}  // namespace nibble::engine
