// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as a step plan or a step's output: an error, or a value whose bytes are these.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/exec/step_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto plan = nibble::engine::DecodePlan(bytes);
  if (plan.ok() && nibble::engine::EncodePlan(*plan) != bytes) std::abort();
  const auto output = nibble::engine::DecodeOutput(bytes);
  if (output.ok() && nibble::engine::EncodeOutput(*output) != bytes) std::abort();
  return 0;
}
