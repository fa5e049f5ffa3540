// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A template of arbitrary bytes, rendered with a small chat under tight limits.
#include <cstddef>
#include <cstdint>
#include <string>

#include "server/chat/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const nibble::server::TemplateLimits limits{.max_template_bytes = 1 << 16,
                                              .max_output_bytes = 1 << 16,
                                              .max_steps = 20'000,
                                              .max_depth = 64,
                                              // Never: an input gives the same each time.
                                              .max_milliseconds = INT64_MAX};
  auto parsed = nibble::server::ChatTemplate::Parse(
      std::string(reinterpret_cast<const char*>(data), size), limits);
  if (!parsed.ok()) return 0;
  static const nlohmann::ordered_json variables = {
      {"messages",
       {{{"role", "system"}, {"content", " Be brief.\n"}},
        {{"role", "user"}, {"content", "Grüße 😀"}},
        {{"role", "assistant"},
         {"content", nullptr},
         {"tool_calls", {{{"id", "1"}, {"x", 1.5}}}}}}},
      {"tools", {{{"type", "function"}, {"function", {{"name", "f"}}}}}},
      {"bos_token", "<s>"},
      {"add_generation_prompt", true}};
  (void)(*parsed)->Render(variables, 1'760'000'000);
  return 0;
}
