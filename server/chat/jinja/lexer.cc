// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/chat/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "server/chat/jinja/text.h"

namespace nibble::server::jinja {
namespace {

constexpr size_t kNpos = std::string_view::npos;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         (static_cast<uint8_t>(c) & 0x80) != 0;
}
bool IsNameChar(char c) { return IsNameStart(c) || IsDigit(c); }

// Jinja reads \r\n and \r as \n and drops one newline at the very end.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t at = 0; at < source.size(); ++at) {
    if (source[at] != '\r') {
      out.push_back(source[at]);
      continue;
    }
    out.push_back('\n');
    if (at + 1 < source.size() && source[at + 1] == '\n') ++at;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}
  absl::StatusOr<std::vector<Token>> Run();

 private:
  bool StartsWith(std::string_view text) const { return source_.substr(at_).starts_with(text); }
  // Moves on by `count` bytes and keeps the line number.
  void Advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(at_ + count),
                                         '\n'));
    at_ += count;
  }
  void SkipSpace() {
    const std::string_view rest = source_.substr(at_);
    Advance(rest.size() - Strip(rest, true, false).size());
  }
  void Push(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  // Emits the text in [at_, end), trimmed for the tag that starts at `end` with the given sign.
  void Text(size_t end, char sign, bool lstrip);
  absl::Status Tag(size_t start);
  absl::Status Comment(size_t start);
  // True when the tag at `start` was {% raw %}.
  absl::StatusOr<bool> Raw(size_t start);
  // After the closing `%}` or `#}` (already consumed): what trim_blocks and `-` take away.
  void AfterTag(char sign);
  absl::Status Expression(std::string_view close, TokenKind end_kind);
  absl::Status OneToken();
  absl::Status StringToken();
  absl::Status NumberToken();
  absl::Status OperatorToken();

  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // nothing of the current line came before at_
  std::vector<Token> tokens_;
  std::string open_brackets_;
};

void Lexer::Text(size_t end, char sign, bool lstrip) {
  std::string_view text = source_.substr(at_, end - at_);
  if (sign == '-') {
    text = Strip(text, false, true);
  } else if (sign != '+' && lstrip) {
    const size_t newline = text.rfind('\n');
    const size_t line_start = newline == kNpos ? 0 : newline + 1;
    if ((line_start > 0 || line_starting_) && Strip(text.substr(line_start), true, false).empty()) {
      text = text.substr(0, line_start);
    }
  }
  if (!text.empty()) Push(TokenKind::kText, std::string(text));
  Advance(end - at_);
}

void Lexer::AfterTag(char sign) {
  if (sign == '-') {
    SkipSpace();
  } else if (sign != '+' && StartsWith("\n")) {
    Advance(1);
  }
  line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
}

absl::Status Lexer::Comment(size_t start) {
  const char sign = start + 2 < source_.size() ? source_[start + 2] : ' ';
  const int line = line_ + static_cast<int>(std::count(
                               source_.begin() + static_cast<std::ptrdiff_t>(at_),
                               source_.begin() + static_cast<std::ptrdiff_t>(start), '\n'));
  Text(start, sign, true);
  const size_t close = source_.find("#}", start + 2);
  if (close == kNpos) return InvalidArgument("line {}: comment without #}}", line);
  const char end_sign = close > start + 2 ? source_[close - 1] : ' ';
  Advance(close + 2 - at_);
  AfterTag(end_sign);
  return absl::OkStatus();
}

absl::StatusOr<bool> Lexer::Raw(size_t start) {
  // {%- raw -%} ... {%- endraw -%}
  const auto word_at = [this](size_t at, std::string_view word) -> size_t {
    const std::string_view rest = Strip(source_.substr(at), true, false);
    return rest.starts_with(word) ? source_.size() - rest.size() + word.size() : kNpos;
  };
  const auto sign_at = [this](size_t at) {
    const char c = at < source_.size() ? source_[at] : ' ';
    return c == '-' || c == '+' ? c : ' ';
  };
  const char sign = sign_at(start + 2);
  size_t end = word_at(start + 2 + (sign == ' ' ? 0 : 1), "raw");
  if (end == kNpos) return false;
  const std::string_view rest = Strip(source_.substr(end), true, false);
  if (!rest.starts_with("%}") && !rest.starts_with("-%}")) return false;
  Text(start, sign, true);
  const int line = line_;
  const bool strip_after = rest.front() == '-';
  Advance(source_.size() - rest.size() + (strip_after ? 3 : 2) - at_);
  if (strip_after) SkipSpace();
  line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';

  for (size_t from = at_;;) {
    const size_t close = source_.find("{%", from);
    if (close == kNpos) return InvalidArgument("line {}: raw block without endraw", line);
    const char close_sign = sign_at(close + 2);
    end = word_at(close + 2 + (close_sign == ' ' ? 0 : 1), "endraw");
    if (end != kNpos) {
      const std::string_view tail = Strip(source_.substr(end), true, false);
      const char end_sign = tail.empty() ? ' ' : tail.front();
      const size_t skip = end_sign == '-' || end_sign == '+' ? 1 : 0;
      if (tail.substr(skip).starts_with("%}")) {
        Text(close, close_sign, true);
        Advance(source_.size() - tail.size() + skip + 2 - at_);
        AfterTag(end_sign);
        return true;
      }
    }
    from = close + 2;
  }
}

absl::Status Lexer::Tag(size_t start) {
  const bool block = source_[start + 1] == '%';
  if (block) {
    NIBBLE_ASSIGN_OR_RETURN(const bool raw, Raw(start));
    if (raw) return absl::OkStatus();
  }
  const char sign = start + 2 < source_.size() ? source_[start + 2] : ' ';
  Text(start, sign, block);
  Push(block ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, "");
  Advance(sign == '-' || sign == '+' ? 3 : 2);
  return Expression(block ? "%}" : "}}", block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd);
}

absl::Status Lexer::Expression(std::string_view close, TokenKind end_kind) {
  const bool block = end_kind == TokenKind::kBlockEnd;
  const int opened = line_;
  open_brackets_.clear();
  while (true) {
    SkipSpace();
    if (at_ >= source_.size()) {
      return InvalidArgument("line {}: tag without {}", opened, std::string(close));
    }
    if (open_brackets_.empty()) {
      const char sign = source_[at_];
      const bool signed_end =
          (sign == '-' || (block && sign == '+')) && source_.substr(at_ + 1).starts_with(close);
      if (signed_end || StartsWith(close)) {
        Push(end_kind, "");
        Advance(signed_end ? 3 : 2);
        if (block) {
          AfterTag(signed_end ? sign : ' ');
        } else {
          if (signed_end) SkipSpace();
          line_starting_ = source_[at_ - 1] == '\n';
        }
        return absl::OkStatus();
      }
    }
    NIBBLE_RETURN_IF_ERROR(OneToken());
  }
}

absl::Status Lexer::OneToken() {
  const char c = source_[at_];
  if (c == '"' || c == '\'') return StringToken();
  if (IsDigit(c)) return NumberToken();
  if (!IsNameStart(c)) return OperatorToken();
  size_t end = at_ + 1;
  while (end < source_.size() && IsNameChar(source_[end])) ++end;
  // The interpreter compares names without counting their bytes.
  constexpr size_t kMaxNameBytes = 255;
  if (end - at_ > kMaxNameBytes) {
    return InvalidArgument("line {}: a name of {} bytes is longer than the limit of {}", line_,
                           end - at_, kMaxNameBytes);
  }
  Push(TokenKind::kName, std::string(source_.substr(at_, end - at_)));
  at_ = end;
  return absl::OkStatus();
}

absl::Status Lexer::OperatorToken() {
  static constexpr std::array<std::string_view, 24> kOperators = {
      "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~",
      "[",  "]",  "(",  ")",  "{",  "}",  ">", "<", "=", ".", ":", "|"};
  std::string_view found = StartsWith(",") ? "," : "";
  for (size_t index = 0; found.empty() && index < kOperators.size(); ++index) {
    if (StartsWith(kOperators[index])) found = kOperators[index];
  }
  if (found.empty()) {
    size_t length = 0;
    FrontChar(source_.substr(at_), &length);
    return InvalidArgument("line {}: unexpected character '{}'", line_,
                           std::string(source_.substr(at_, length)));
  }
  constexpr std::string_view kOpen = "([{";
  constexpr std::string_view kClose = ")]}";
  if (kOpen.find(found) != kNpos) {
    open_brackets_.push_back(kClose[kOpen.find(found)]);
  } else if (kClose.find(found) != kNpos) {
    if (open_brackets_.empty() || open_brackets_.back() != found.front()) {
      return InvalidArgument("line {}: unexpected '{}'", line_, std::string(found));
    }
    open_brackets_.pop_back();
  }
  Push(TokenKind::kOperator, std::string(found));
  at_ += found.size();
  return absl::OkStatus();
}

absl::Status Lexer::NumberToken() {
  std::string digits;
  int base = 10;
  bool is_float = false;
  size_t end = at_;
  const auto take = [&](auto&& accept) {
    while (end < source_.size() && (accept(source_[end]) || source_[end] == '_')) {
      if (source_[end] != '_') digits.push_back(source_[end]);
      ++end;
    }
  };
  const char second = end + 1 < source_.size() ? static_cast<char>(source_[end + 1] | 0x20) : ' ';
  if (source_[at_] == '0' && (second == 'x' || second == 'o' || second == 'b')) {
    base = second == 'x' ? 16 : (second == 'o' ? 8 : 2);
    end += 2;
    take([](char c) { return IsDigit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'); });
  } else {
    take(IsDigit);
    if (end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1])) {
      is_float = true;
      digits.push_back('.');
      ++end;
      take(IsDigit);
    }
    if (end < source_.size() && (source_[end] | 0x20) == 'e') {
      const size_t sign =
          end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
      if (end + 1 + sign < source_.size() && IsDigit(source_[end + 1 + sign])) {
        is_float = true;
        digits.append(source_.substr(end, 1 + sign));
        end += 1 + sign;
        take(IsDigit);
      }
    }
  }
  Token token{is_float ? TokenKind::kFloat : TokenKind::kInteger,
              std::string(source_.substr(at_, end - at_)), line_};
  const char* last = digits.data() + digits.size();
  const auto result = is_float ? std::from_chars(digits.data(), last, token.number)
                               : std::from_chars(digits.data(), last, token.integer, base);
  if (result.ec != std::errc() || result.ptr != last) {
    return InvalidArgument("line {}: number {} is malformed or outside of 64 bits", line_,
                           token.text.substr(0, 40));
  }
  tokens_.push_back(std::move(token));
  at_ = end;
  return absl::OkStatus();
}

// Python's escapes; one that Python does not know stays as it is written.
absl::Status Lexer::StringToken() {
  const char quote = source_[at_];
  const int line = line_;
  std::string out;
  size_t at = at_ + 1;
  while (true) {
    if (at >= source_.size()) return InvalidArgument("line {}: string without end", line);
    const char c = source_[at++];
    if (c == quote) break;
    if (c != '\\') {
      out.push_back(c);
      continue;
    }
    if (at >= source_.size()) return InvalidArgument("line {}: string without end", line);
    const char escape = source_[at++];
    constexpr std::string_view kLetters = "nrtbfav\\'\"";
    constexpr std::string_view kMeanings = "\n\r\t\b\f\a\v\\'\"";
    const size_t known = kLetters.find(escape);
    const size_t hex_digits = escape == 'x' ? 2 : (escape == 'u' ? 4 : (escape == 'U' ? 8 : 0));
    uint32_t point = 0;
    if (known != kNpos) {
      out.push_back(kMeanings[known]);
    } else if (escape == '\n') {
      continue;  // a line carried on
    } else if (escape >= '0' && escape <= '7') {
      const size_t end = std::min(at + 2, source_.size());
      const auto parsed = std::from_chars(source_.data() + at - 1, source_.data() + end, point, 8);
      at = static_cast<size_t>(parsed.ptr - source_.data());
      AppendChar(point, &out);
    } else if (hex_digits > 0) {
      const size_t end = std::min(at + hex_digits, source_.size());
      const auto parsed = std::from_chars(source_.data() + at, source_.data() + end, point, 16);
      const bool surrogate = point >= 0xd800 && point < 0xe000;
      if (parsed.ptr != source_.data() + at + hex_digits || surrogate || point > 0x10ffff) {
        return InvalidArgument("line {}: malformed escape \\{} in a string", line, escape);
      }
      at = end;
      AppendChar(point, &out);
    } else if (escape == 'N') {
      return InvalidArgument("line {}: \\N{{name}} escapes are not supported", line);
    } else {
      out.push_back('\\');
      out.push_back(escape);
    }
  }
  tokens_.push_back({TokenKind::kString, std::move(out), line});
  Advance(at - at_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Token>> Lexer::Run() {
  while (at_ < source_.size()) {
    size_t start = source_.find('{', at_);
    while (start != kNpos && (start + 1 >= source_.size() ||
                              std::string_view("{%#").find(source_[start + 1]) == kNpos)) {
      start = source_.find('{', start + 1);
    }
    if (start == kNpos) {
      Push(TokenKind::kText, std::string(source_.substr(at_)));
      break;
    }
    NIBBLE_RETURN_IF_ERROR(source_[start + 1] == '#' ? Comment(start) : Tag(start));
  }
  Push(TokenKind::kEnd, "");
  return std::move(tokens_);
}

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  const std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

}  // namespace nibble::server::jinja
