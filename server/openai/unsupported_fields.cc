// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Fields of the OpenAI and vLLM APIs that nibble has not built, each with the values that ask for
// nothing (besides null, which always does). Anything else is refused by name: an answer that looks
// right but ignored "response_format" is worse than an error.

#include <array>

#include "server/openai/field_reader.h"

namespace nibble::server {
namespace {

struct UnreadField {
  std::string_view name;
  // JSON list of harmless values; a type's name in place of the list: every value of that type.
  std::string_view harmless;
};

constexpr std::string_view kAnyString = "string";
constexpr std::string_view kAnyObject = "object";
constexpr std::string_view kAnyBoolean = "boolean";

constexpr auto kFields = std::to_array<UnreadField>({
    // Labels for the operator of a service; they never change an answer.
    {"user", kAnyString},
    {"safety_identifier", kAnyString},
    {"prompt_cache_key", kAnyString},
    {"metadata", kAnyObject},
    {"store", "[false]"},
    {"service_tier", R"(["auto", "default"])"},
    // Tools. With none given, how they might be called does not matter.
    {"tools", "[[]]"},
    {"tool_choice", R"(["none", "auto"])"},
    {"parallel_tool_calls", kAnyBoolean},
    {"functions", "[[]]"},
    {"function_call", R"(["none", "auto"])"},
    {"tool_calls", "[[]]"},
    {"tool_call_id", "[]"},
    // The form of the answer.
    {"response_format", R"([{"type": "text"}])"},
    {"structured_outputs", "[]"},
    {"guided_json", "[]"},
    {"guided_regex", "[]"},
    {"guided_choice", "[]"},
    {"guided_grammar", "[]"},
    {"guided_decoding_backend", "[]"},
    {"guided_whitespace_pattern", "[]"},
    {"structural_tag", "[]"},
    {"modalities", R"([["text"]])"},
    {"audio", "[]"},
    {"prediction", "[]"},
    {"web_search_options", "[]"},
    {"reasoning", "[]"},
    {"reasoning_effort", "[]"},
    {"reasoning_content", R"([""])"},
    {"include_reasoning", "[true]"},
    {"thinking_token_budget", "[]"},
    {"verbosity", "[]"},
    // Of messages that an earlier answer gave.
    {"refusal", R"([""])"},
    {"annotations", "[[]]"},
    // Sampling.
    {"best_of", "[1]"},
    {"use_beam_search", "[false]"},
    {"length_penalty", "[1.0]"},
    {"early_stopping", "[false]"},
    {"logits_processors", "[[]]"},
    {"allowed_token_ids", "[]"},
    {"bad_words", "[[]]"},
    {"prompt_logprobs", "[]"},
    {"spaces_between_special_tokens", "[true]"},
    // Prompt and answer.
    {"echo", "[false]"},
    {"suffix", R"([""])"},
    {"truncate_prompt_tokens", "[]"},
    {"continue_final_message", "[false]"},
    {"chat_template", "[]"},
    {"documents", "[[]]"},
    {"mm_processor_kwargs", "[]"},
    {"prompt_embeds", "[]"},
    {"return_token_ids", "[false]"},
    {"return_tokens_as_token_ids", "[false]"},
    // Serving. A request's name comes in the x-request-id header.
    {"request_id", "[]"},
    {"cache_salt", "[]"},
    {"kv_transfer_params", "[]"},
    {"vllm_xargs", "[]"},
    // Of stream_options.
    {"continuous_usage_stats", "[false]"},
    {"include_obfuscation", "[false]"},
});

bool IsHarmless(std::string_view harmless, const nlohmann::json& value) {
  if (harmless == kAnyString) return value.is_string();
  if (harmless == kAnyObject) return value.is_object();
  if (harmless == kAnyBoolean) return value.is_boolean();
  // The table is ours and well-formed; it is parsed only for a request that has the field.
  const auto values = nlohmann::json::parse(harmless, nullptr, /*allow_exceptions=*/false);
  for (const nlohmann::json& candidate : values) {
    if (candidate == value) return true;
  }
  return false;
}

}  // namespace

FieldFate JudgeUnreadField(std::string_view name, const nlohmann::json& value) {
  for (const UnreadField& field : kFields) {
    if (field.name != name) continue;
    return IsHarmless(field.harmless, value) ? FieldFate::kHarmless : FieldFate::kRefused;
  }
  return FieldFate::kUnknown;
}

}  // namespace nibble::server
