// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/name_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include "pcre2.h"

namespace nibble::engine {
namespace {

constexpr std::string_view kRegexPrefix = "re:";
// Names have some dozens of characters: patterns for them that need more are out to do harm.
constexpr size_t kMaxPatternBytes = 4096;
constexpr uint32_t kHeapLimitKib = 1024;

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  const int length = pcre2_get_error_message(code, buffer, sizeof(buffer));
  return length < 0 ? fmt::format("error {}", code) : std::string(buffer, buffer + length);
}

PCRE2_SPTR Units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

struct NamePattern::Compiled {
  explicit Compiled(pcre2_code* compiled) : code(compiled) {}
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() { pcre2_code_free(code); }
  pcre2_code* code;
};

absl::StatusOr<NamePattern> NamePattern::Parse(std::string_view text) {
  NamePattern pattern;
  pattern.text_ = text;
  if (!text.starts_with(kRegexPrefix)) return pattern;
  text.remove_prefix(kRegexPrefix.size());
  if (text.size() > kMaxPatternBytes) {
    return InvalidArgument("a pattern of {} bytes, the limit is {}", text.size(), kMaxPatternBytes);
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(Units(text), text.size(), PCRE2_ANCHORED, &error, &offset, nullptr);
  if (code == nullptr) {
    return InvalidArgument("pattern '{}': {} at character {}", pattern.text_, ErrorText(error),
                           offset);
  }
  pattern.regex_ = std::make_shared<const Compiled>(code);
  return pattern;
}

absl::StatusOr<bool> NamePattern::Matches(std::string_view name, uint32_t max_steps) const {
  if (regex_ == nullptr) return name == text_;
  struct Free {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  };
  const std::unique_ptr<pcre2_match_context, Free> context(pcre2_match_context_create(nullptr));
  const std::unique_ptr<pcre2_match_data, Free> data(pcre2_match_data_create(1, nullptr));
  if (context == nullptr || data == nullptr) {
    return ResourceExhausted("pattern '{}' on '{}': no memory to match it", text_, name);
  }
  pcre2_set_match_limit(context.get(), max_steps);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  const int found =
      pcre2_match(regex_->code, Units(name), name.size(), 0, 0, data.get(), context.get());
  if (found >= 0) return true;
  if (found == PCRE2_ERROR_NOMATCH) return false;
  return ResourceExhausted("pattern '{}' on '{}': {} (the limit is {} steps)", text_, name,
                           ErrorText(found), max_steps);
}

}  // namespace nibble::engine
