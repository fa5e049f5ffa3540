// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// tokenizer.json from anybody: loads or is refused, and what loads encodes and decodes. An input
// that does not start with '{' is taken as a SentencePiece tokenizer.model.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/tokenizer/sentencepiece_tokenizer.h"
#include "engine/tokenizer/tokenizer_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::engine::IncrementalDecoder;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = input.starts_with('{') ? nibble::engine::LoadTokenizerJson(input, "")
                                                : nibble::engine::LoadSentencePiece(input, "");
  if (!tokenizer.ok()) return 0;
  for (const std::string_view text :
       {"Once upon a <s>time</s>", "\xc3\xa9 \n\n 12 ab\xe2\x96\x81"}) {
    const auto ids = (*tokenizer)->Encode(text, true);
    if (!ids.ok()) continue;
    const auto whole = (*tokenizer)->Decode(*ids, false);
    IncrementalDecoder decoder(tokenizer->get(), false);
    std::string pieces;
    for (const int32_t id : *ids) pieces += decoder.Append(id);
    pieces += decoder.Flush();
    if (!whole.ok() || pieces != *whole) __builtin_trap();
  }
  return 0;
}
