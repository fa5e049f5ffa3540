// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A Tokenizer from SentencePiece's tokenizer.model, with the special tokens of
// tokenizer_config.json.
#pragma once

#include <memory>
#include <string_view>

#include "base/status.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::engine {

// The contents of the two files; `config` may be empty. Errors name file and element.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(std::string_view model,
                                                             std::string_view config);

}  // namespace nibble::engine
