// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/regex.h"

#include <cstdint>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/tokenizer/unicode.h"
#include "pcre2.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxPatternBytes = size_t{64} << 10;
constexpr uint32_t kMatchLimit = 10'000'000;  // backtracking steps for one match
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kJitStackBytes = size_t{1} << 20;

struct Free {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  const int length = pcre2_get_error_message(code, buffer, sizeof(buffer));
  return length < 0 ? fmt::format("error {}", code) : std::string(buffer, buffer + length);
}

absl::Status Unsupported(std::string_view pattern, std::string_view what) {
  return InvalidArgument("pattern \"{}\": {} is not supported", pattern, what);
}

// PCRE2's \s holds U+180E, which is no white space, and its \w lacks marks: both are written out.
// What PCRE2 would read in another sense than Oniguruma is refused.
absl::StatusOr<std::string> Translate(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t pos = 0; pos < pattern.size(); ++pos) {
    const char c = pattern[pos];
    const char next = pos + 1 < pattern.size() ? pattern[pos + 1] : '\0';
    if (c == '\\') {
      ++pos;
      constexpr std::string_view kWord = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}";
      if (next == 's') {
        out += "\\p{White_Space}";
      } else if (next == 'S') {
        out += "\\P{White_Space}";
      } else if (next == 'w') {
        out += in_class ? std::string(kWord) : fmt::format("[{}]", kWord);
      } else if (next == 'W' && !in_class) {
        out += fmt::format("[^{}]", kWord);
      } else if (next == 'W' || next == 'h' || next == 'H' || next == 'b' || next == 'B') {
        return Unsupported(pattern, fmt::format("\\{}{}", next, in_class ? " in a class" : ""));
      } else {
        out += c;
        if (next != '\0') out += next;
      }
      continue;
    }
    if (in_class) {
      if (c == '&' && next == '&') return Unsupported(pattern, "&& (intersection of classes)");
      if (c == '[' && next == ':') {
        const size_t end = pattern.find(":]", pos + 2);
        if (end == std::string_view::npos) return Unsupported(pattern, "[ within a class");
        out += pattern.substr(pos, end + 2 - pos);
        pos = end + 1;
        continue;
      }
      if (c == '[') return Unsupported(pattern, "[ within a class");
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      out += c;
      if (next == '^') {
        out += next;
        ++pos;
      }
      continue;
    } else if (c == '{' && next == ',') {
      return Unsupported(pattern, "{,n}");
    } else if (c == '(' && next == '*') {
      return Unsupported(pattern, "(*VERB)");
    } else if (c == '(' && next == '?') {
      // In Oniguruma (?m) means that a dot matches line ends, and (?s) nothing.
      for (size_t flag = pos + 2; flag < pattern.size(); ++flag) {
        if (pattern[flag] == 'm' || pattern[flag] == 's')
          return Unsupported(pattern, "(?m) or (?s)");
        if (pattern[flag] != 'i' && pattern[flag] != 'x' && pattern[flag] != '-') break;
      }
    }
    out += c;
  }
  return out;
}

}  // namespace

struct Regex::Compiled {
  std::string pattern;  // as the file has it, for messages
  std::unique_ptr<pcre2_code, Free> code;
};

Regex::Regex(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return InvalidArgument("pattern of {} bytes, the limit is {}", pattern.size(),
                           kMaxPatternBytes);
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string translated, Translate(pattern));
  int error = 0;
  size_t offset = 0;
  auto compiled = std::make_unique<Compiled>();
  compiled->pattern = std::string(pattern);
  compiled->code.reset(pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr));
  if (compiled->code == nullptr) {
    return InvalidArgument("pattern \"{}\": {}", pattern, ErrorText(error));
  }
  // Without the JIT compiler (a hardened kernel may refuse it) pcre2_match() interprets: slower,
  // same result.
  pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE);
  return Regex(std::move(compiled));
}

absl::Status Regex::FindAll(std::string_view text, std::vector<Span>* spans) const {
  spans->clear();
  if (text.empty()) return absl::OkStatus();
  const pcre2_code* code = compiled_->code.get();
  const std::unique_ptr<pcre2_match_data, Free> data(
      pcre2_match_data_create_from_pattern(code, nullptr));
  const std::unique_ptr<pcre2_match_context, Free> context(pcre2_match_context_create(nullptr));
  const std::unique_ptr<pcre2_jit_stack, Free> stack(
      pcre2_jit_stack_create(size_t{32} << 10, kJitStackBytes, nullptr));
  if (data == nullptr || context == nullptr || stack == nullptr) {
    return ResourceExhausted("no memory to match a pattern");
  }
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_depth_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  const size_t* offsets = pcre2_get_ovector_pointer(data.get());
  size_t previous_end = 0;
  for (size_t pos = 0; pos <= text.size();) {
    const int count = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), pos,
                                  PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      return ResourceExhausted("pattern \"{}\" on a text of {} bytes: {}", compiled_->pattern,
                               text.size(), ErrorText(count));
    }
    const size_t begin = offsets[0];
    const size_t end = offsets[1];
    if (begin < previous_end || end < begin) break;  // \K in a lookaround can do that
    if (previous_end < begin) spans->push_back({previous_end, begin, false});
    spans->push_back({begin, end, true});
    previous_end = end;
    if (end > begin || end >= text.size()) {
      pos = end > begin ? end : end + 1;
    } else {
      pos = end + Utf8Length(text[end]);  // after an empty match, look from the next character on
    }
  }
  if (previous_end < text.size()) spans->push_back({previous_end, text.size(), false});
  return absl::OkStatus();
}

void FindAllPlain(std::string_view text, std::string_view needle, std::vector<Span>* spans) {
  spans->clear();
  size_t previous_end = 0;
  for (size_t begin = text.find(needle); begin != std::string_view::npos;
       begin = text.find(needle, previous_end)) {
    if (previous_end < begin) spans->push_back({previous_end, begin, false});
    previous_end = begin + needle.size();
    spans->push_back({begin, previous_end, true});
  }
  if (previous_end < text.size()) spans->push_back({previous_end, text.size(), false});
}

}  // namespace nibble::engine
