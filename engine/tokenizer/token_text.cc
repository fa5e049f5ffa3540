// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/token_text.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "engine/tokenizer/text_pattern.h"
#include "engine/tokenizer/unicode.h"

namespace nibble::engine {

void TokenText::Set(int32_t id, std::string_view middle, std::string_view at_start) {
  const auto index = static_cast<size_t>(id);
  if (index >= entries_.size()) entries_.resize(index + 1);
  entries_[index].middle = middle;
  entries_[index].differs = middle != at_start;
  if (entries_[index].differs) entries_[index].at_start = at_start;
}

std::string_view TokenText::Middle(int32_t id) const {
  const auto index = static_cast<size_t>(id);
  return id < 0 || index >= entries_.size() ? std::string_view() : entries_[index].middle;
}

void TokenText::Append(int32_t id, TextStart* start, std::string* out) const {
  std::string_view bytes = Middle(id);
  if (start->passed || leading_.rule == LeadingRule::kNone) {
    out->append(bytes);
    return;
  }
  if (leading_.rule == LeadingRule::kStripBytes) {
    while (!bytes.empty() && bytes[0] == leading_.stripped &&
           start->num_stripped < leading_.max_stripped) {
      bytes.remove_prefix(1);
      ++start->num_stripped;
    }
    start->passed = !bytes.empty() || start->num_stripped >= leading_.max_stripped;
    out->append(bytes);
    return;
  }
  const auto index = static_cast<size_t>(id);
  const bool differs = id >= 0 && index < entries_.size() && entries_[index].differs;
  if (differs) bytes = entries_[index].at_start;
  out->append(bytes);
  if (leading_.rule == LeadingRule::kFirstTokenBlanks) {
    start->passed = true;
    return;
  }
  // max_stripped 0: leading blanks vanish one token after the other until there is text.
  if (differs) ++start->num_stripped;
  start->passed = !bytes.empty() || (leading_.max_stripped > 0 && start->num_stripped > 0);
}

namespace {

constexpr size_t kMaxSteps = 64;

// A token on its way through the decoders.
struct Text {
  std::string bytes;
  bool is_first = false;
  bool is_added = false;
  bool is_raw = false;  // bytes made from a byte token: later steps leave them alone
  TextLimit limit = TextLimit(bytes.size());  // of the token's own bytes, over all steps
};

using Step = std::function<absl::Status(Text*)>;

void DecodeByteLevel(Text* text) {
  if (text->is_added) return;  // added tokens are written as they are, not in the byte alphabet
  std::string bytes;
  for (size_t pos = 0; pos < text->bytes.size();) {
    const int byte = ByteOfAlphabet(NextCharacter(text->bytes, &pos));
    if (byte < 0) return;  // not written in the alphabet
    bytes += static_cast<char>(byte);
  }
  text->bytes = std::move(bytes);
  text->is_raw = true;
}

// Steps in order, and the rule for the beginning that they amount to.
class DecoderBuilder {
 public:
  absl::Status Add(const JsonNode& node, int depth);
  const LeadingText& leading() const { return leading_; }
  absl::Status Run(Text* text) const {
    for (const Step& step : steps_) NIBBLE_RETURN_IF_ERROR(step(text));
    return absl::OkStatus();
  }

 private:
  absl::Status AddMetaspace(const JsonNode& node);
  absl::Status AddStrip(const JsonNode& node);

  std::vector<Step> steps_;
  LeadingText leading_;
  bool fused_ = false;  // the tokens have become one text
};

absl::Status DecoderBuilder::AddMetaspace(const JsonNode& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string blank, node["replacement"].String());
  if (blank.empty()) return node["replacement"].Error("want one character");
  bool prepends = true;
  if (node["prepend_scheme"].exists()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string scheme, node["prepend_scheme"].String());
    prepends = scheme != "never";
  }
  NIBBLE_ASSIGN_OR_RETURN(const bool add_prefix_space, node["add_prefix_space"].BoolOr(true));
  prepends = prepends && add_prefix_space;
  if (prepends) leading_.rule = LeadingRule::kFirstTokenBlanks;
  steps_.push_back([blank, prepends](Text* text) {
    std::vector<Span> spans;
    FindAllPlain(text->bytes, blank, &spans);
    std::string result;
    for (const Span& span : spans) {
      if (!span.is_match) {
        result += text->bytes.substr(span.begin, span.end - span.begin);
      } else if (!(prepends && text->is_first)) {
        result += ' ';
      }
    }
    text->bytes = std::move(result);
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

absl::Status DecoderBuilder::AddStrip(const JsonNode& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string content, node["content"].String());
  NIBBLE_ASSIGN_OR_RETURN(const int64_t start, node["start"].Int(0, 1 << 20));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t stop, node["stop"].Int(0, 1 << 20));
  if (content.size() != 1 || static_cast<uint8_t>(content[0]) >= 0x80) {
    return node["content"].Error(
        fmt::format("\"{}\": only one ASCII character can be stripped", content));
  }
  if (fused_) {
    if (stop != 0) return node["stop"].Error("stripping the end of a fused text is not supported");
    if (leading_.rule != LeadingRule::kNone) return node.Error("a second rule for the beginning");
    leading_ = {LeadingRule::kStripBytes, content[0], static_cast<int32_t>(start)};
    return absl::OkStatus();
  }
  steps_.push_back([c = content[0], start, stop](Text* text) {
    std::string& bytes = text->bytes;
    for (int64_t i = 0; i < start && bytes.starts_with(c); ++i) bytes.erase(0, 1);
    for (int64_t i = 0; i < stop && bytes.ends_with(c); ++i) bytes.pop_back();
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

absl::Status DecoderBuilder::Add(const JsonNode& node, int depth) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, node["type"].String());
  if (type == "Sequence") {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<JsonNode> elements, node["decoders"].Elements());
    if (depth > 8 || elements.size() + steps_.size() > kMaxSteps) {
      return node.Error(fmt::format("more than {} decoders", kMaxSteps));
    }
    for (const JsonNode& element : elements) NIBBLE_RETURN_IF_ERROR(Add(element, depth + 1));
    return absl::OkStatus();
  }
  if (type == "Fuse") {
    fused_ = true;
    return absl::OkStatus();
  }
  if (type == "Strip") return AddStrip(node);
  if (fused_ && type != "ByteFallback") {
    return node.Error(fmt::format("decoder \"{}\" after Fuse is not supported", type));
  }
  if (type == "Metaspace") return AddMetaspace(node);
  if (type == "ByteLevel") {
    steps_.push_back([](Text* text) {
      DecodeByteLevel(text);
      return absl::OkStatus();
    });
    return absl::OkStatus();
  }
  if (type == "ByteFallback") {
    if (fused_) return absl::OkStatus();  // a fused text is no byte token
    steps_.push_back([](Text* text) {
      const int byte = ByteOfToken(text->bytes);
      if (byte >= 0) text->bytes.assign(1, static_cast<char>(byte));
      text->is_raw = byte >= 0;
      return absl::OkStatus();
    });
    return absl::OkStatus();
  }
  if (type == "Replace") {
    NIBBLE_ASSIGN_OR_RETURN(TextPattern created, TextPattern::Create(node["pattern"]));
    NIBBLE_ASSIGN_OR_RETURN(const std::string content, node["content"].String());
    const auto pattern = std::make_shared<const TextPattern>(std::move(created));
    steps_.push_back([pattern, content](Text* text) -> absl::Status {
      if (text->is_raw) return absl::OkStatus();
      NIBBLE_ASSIGN_OR_RETURN(text->bytes, pattern->Replace(text->bytes, content, text->limit));
      return absl::OkStatus();
    });
    return absl::OkStatus();
  }
  return node.Error(fmt::format("decoder \"{}\" is not supported", type));
}

}  // namespace

absl::StatusOr<TokenText> CreateTokenText(const JsonNode& node, const Vocabulary& vocabulary,
                                          const AddedTokens& added) {
  if (!node.exists()) return node.Error("a tokenizer without a decoder is not supported");
  DecoderBuilder decoder;
  NIBBLE_RETURN_IF_ERROR(decoder.Add(node, 0));
  TokenText text(decoder.leading());
  int64_t size = vocabulary.size();
  for (const AddedToken& token : added.tokens()) size = std::max(size, int64_t{token.id} + 1);
  for (int32_t id = 0; id < size; ++id) {
    const AddedToken* added_token = added.FindById(id);
    const std::string* token =
        added_token != nullptr ? &added_token->content : vocabulary.Token(id);
    if (token == nullptr) continue;
    Text middle{*token, false, added_token != nullptr};
    Text first{*token, true, added_token != nullptr};
    NIBBLE_RETURN_IF_ERROR(decoder.Run(&middle));
    NIBBLE_RETURN_IF_ERROR(decoder.Run(&first));
    text.Set(id, middle.bytes, first.bytes);
  }
  return text;
}

}  // namespace nibble::engine
