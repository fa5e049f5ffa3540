// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/tokenizer/text_pattern.h"
#include "engine/tokenizer/unicode.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxSteps = 64;

// What becomes of a match ("delimiter").
enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

absl::StatusOr<Behavior> ParseBehavior(const JsonNode& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string name, node.String());
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return node.Error(fmt::format("unknown behavior \"{}\"", name));
}

// Merges or drops spans in place as `behavior` says; what is left are the pieces, in order.
void ApplyBehavior(Behavior behavior, std::vector<Span>* spans) {
  if (behavior == Behavior::kIsolated) return;
  if (behavior == Behavior::kRemoved) {
    std::erase_if(*spans, [](const Span& span) { return span.is_match; });
    return;
  }
  std::vector<Span> merged;
  bool previous_match = false;
  if (behavior == Behavior::kMergedWithNext) std::reverse(spans->begin(), spans->end());
  for (const Span& span : *spans) {
    const bool join = behavior == Behavior::kContiguous ? span.is_match == previous_match
                                                        : span.is_match && !previous_match;
    if (join && !merged.empty()) {
      merged.back().begin = std::min(merged.back().begin, span.begin);
      merged.back().end = std::max(merged.back().end, span.end);
    } else {
      merged.push_back(span);
    }
    previous_match = span.is_match;
  }
  if (behavior == Behavior::kMergedWithNext) std::reverse(merged.begin(), merged.end());
  *spans = std::move(merged);
}

// Cuts every piece by `find(piece, &spans)`.
template <typename Find>
absl::StatusOr<Pieces> SplitAll(const Pieces& in, Behavior behavior, const Find& find) {
  Pieces out;
  out.text.reserve(in.text.size());
  out.first_is_at_start = in.first_is_at_start;
  std::vector<Span> spans;
  for (size_t index = 0; index < in.size(); ++index) {
    const std::string_view piece = in[index];
    NIBBLE_RETURN_IF_ERROR(find(piece, &spans));
    ApplyBehavior(behavior, &spans);
    if (index == 0 && (spans.empty() || spans.front().begin > 0)) out.first_is_at_start = false;
    for (const Span& span : spans) out.Add(piece.substr(span.begin, span.end - span.begin));
  }
  return out;
}

class PatternSplit : public PreTokenizer {
 public:
  PatternSplit(TextPattern pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  absl::StatusOr<Pieces> Cut(const Pieces& in, const TextLimit& /*limit*/) const override {
    return SplitAll(in, behavior_, [this](std::string_view piece, std::vector<Span>* spans) {
      absl::Status status = pattern_.FindAll(piece, spans);
      if (invert_) {
        for (Span& span : *spans) span.is_match = !span.is_match;
      }
      return status;
    });
  }

 private:
  TextPattern pattern_;
  Behavior behavior_;
  bool invert_;
};

// Every character that satisfies `Predicate` is a match of its own.
template <typename Predicate>
class CharacterSplit : public PreTokenizer {
 public:
  CharacterSplit(Predicate predicate, Behavior behavior)
      : predicate_(std::move(predicate)), behavior_(behavior) {}
  absl::StatusOr<Pieces> Cut(const Pieces& in, const TextLimit& /*limit*/) const override {
    return SplitAll(in, behavior_, [this](std::string_view piece, std::vector<Span>* spans) {
      spans->clear();
      size_t begin = 0;  // of the stretch without a match
      for (size_t pos = 0; pos < piece.size();) {
        const size_t at = pos;
        if (!predicate_(NextCharacter(piece, &pos))) continue;
        if (begin < at) spans->push_back({begin, at, false});
        spans->push_back({at, pos, true});
        begin = pos;
      }
      if (begin < piece.size()) spans->push_back({begin, piece.size(), false});
      return absl::OkStatus();
    });
  }

 private:
  Predicate predicate_;
  Behavior behavior_;
};

template <typename Predicate>
std::unique_ptr<PreTokenizer> SplitAt(Predicate predicate, Behavior behavior) {
  return std::make_unique<CharacterSplit<Predicate>>(std::move(predicate), behavior);
}

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, std::optional<TextPattern> pattern)
      : add_prefix_space_(add_prefix_space), pattern_(std::move(pattern)) {}

  absl::StatusOr<Pieces> Cut(const Pieces& in, const TextLimit& /*limit*/) const override {
    Pieces out;
    out.first_is_at_start = in.first_is_at_start;
    out.text.reserve(in.text.size() * 2);
    std::vector<Span> spans;
    std::string prefixed;
    for (size_t index = 0; index < in.size(); ++index) {
      std::string_view piece = in[index];
      if (add_prefix_space_ && !piece.starts_with(' ')) {
        prefixed.assign(" ").append(piece);
        piece = prefixed;
      }
      spans.assign(1, {0, piece.size(), false});
      if (pattern_.has_value()) NIBBLE_RETURN_IF_ERROR(pattern_->FindAll(piece, &spans));
      for (const Span& span : spans) {
        for (const char byte : piece.substr(span.begin, span.end - span.begin)) {
          out.text += ByteAlphabet()[static_cast<uint8_t>(byte)];
        }
        out.Close();
      }
    }
    return out;
  }

 private:
  bool add_prefix_space_;
  std::optional<TextPattern> pattern_;
};

enum class PrependScheme { kAlways, kFirst, kNever };

class Metaspace : public PreTokenizer {
 public:
  Metaspace(std::string blank, PrependScheme scheme, bool split)
      : blank_(std::move(blank)), scheme_(scheme), split_(split) {}

  absl::StatusOr<Pieces> Cut(const Pieces& in, const TextLimit& /*limit*/) const override {
    Pieces out;
    out.first_is_at_start = in.first_is_at_start;
    out.text.reserve(in.text.size() * 2);
    for (size_t index = 0; index < in.size(); ++index) {
      std::string piece;
      for (const char c : in[index]) {
        if (c == ' ') {
          piece += blank_;
        } else {
          piece += c;
        }
      }
      const bool at_start = index == 0 && in.first_is_at_start;
      if ((scheme_ == PrependScheme::kAlways || (scheme_ == PrependScheme::kFirst && at_start)) &&
          !piece.starts_with(blank_)) {
        piece.insert(0, blank_);
      }
      AddPiece(piece, &out);
    }
    return out;
  }

 private:
  // A word begins at every blank.
  void AddPiece(std::string_view piece, Pieces* out) const {
    for (size_t begin = 0; begin < piece.size();) {
      const size_t next = split_ ? piece.find(blank_, begin + 1) : std::string_view::npos;
      const size_t end = std::min(next, piece.size());
      out->Add(piece.substr(begin, end - begin));
      begin = end;
    }
  }

  std::string blank_;
  PrependScheme scheme_;
  bool split_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {}
  absl::StatusOr<Pieces> Cut(const Pieces& in, const TextLimit& limit) const override {
    Pieces pieces = in;
    for (const auto& step : steps_) {
      NIBBLE_ASSIGN_OR_RETURN(pieces, step->Apply(pieces, limit));
    }
    return pieces;
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

absl::StatusOr<std::unique_ptr<PreTokenizer>> CreateSequence(const JsonNode& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<JsonNode> nodes, node["pretokenizers"].Elements());
  if (nodes.size() > kMaxSteps) {
    return node.Error(fmt::format("{} pre-tokenizers, the limit is {}", nodes.size(), kMaxSteps));
  }
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  for (const JsonNode& element : nodes) {
    NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<PreTokenizer> step, CreatePreTokenizer(element));
    if (step == nullptr) return element.Error("want a pre-tokenizer");
    steps.push_back(std::move(step));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> CreateByteLevel(const JsonNode& node) {
  // What the library's ByteLevel cuts by, from the GPT-2 paper's code.
  constexpr std::string_view kGpt2Pattern =
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
  NIBBLE_ASSIGN_OR_RETURN(const bool add_prefix_space, node["add_prefix_space"].BoolOr(true));
  NIBBLE_ASSIGN_OR_RETURN(const bool use_regex, node["use_regex"].BoolOr(true));
  std::optional<TextPattern> pattern;
  if (use_regex) {
    NIBBLE_ASSIGN_OR_RETURN(pattern, TextPattern::FromRegex(kGpt2Pattern));
  }
  return std::make_unique<ByteLevel>(add_prefix_space, std::move(pattern));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> CreateMetaspace(const JsonNode& node) {
  const JsonNode replacement = node["replacement"];
  NIBBLE_ASSIGN_OR_RETURN(std::string blank, replacement.String());
  if (blank.empty() || Utf8Length(blank[0]) != blank.size()) {
    return replacement.Error("want one character");
  }
  PrependScheme scheme = PrependScheme::kAlways;
  const JsonNode scheme_node = node["prepend_scheme"];
  if (scheme_node.exists()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string name, scheme_node.String());
    if (name == "first") {
      scheme = PrependScheme::kFirst;
    } else if (name == "never") {
      scheme = PrependScheme::kNever;
    } else if (name != "always") {
      return scheme_node.Error(fmt::format("unknown scheme \"{}\"", name));
    }
  }
  // The older spelling of "never".
  NIBBLE_ASSIGN_OR_RETURN(const bool add_prefix, node["add_prefix_space"].BoolOr(true));
  if (!add_prefix) scheme = PrependScheme::kNever;
  NIBBLE_ASSIGN_OR_RETURN(const bool split, node["split"].BoolOr(true));
  return std::make_unique<Metaspace>(std::move(blank), scheme, split);
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> CreateSplit(const JsonNode& node) {
  NIBBLE_ASSIGN_OR_RETURN(TextPattern pattern, TextPattern::Create(node["pattern"]));
  NIBBLE_ASSIGN_OR_RETURN(const Behavior behavior, ParseBehavior(node["behavior"]));
  NIBBLE_ASSIGN_OR_RETURN(const bool invert, node["invert"].BoolOr(false));
  return std::make_unique<PatternSplit>(std::move(pattern), behavior, invert);
}

}  // namespace

absl::StatusOr<Pieces> PreTokenizer::Apply(const Pieces& in, const TextLimit& limit) const {
  absl::StatusOr<Pieces> pieces = Cut(in, limit);
  if (pieces.ok()) NIBBLE_RETURN_IF_ERROR(limit.Check(pieces->text.size()));
  return pieces;
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> CreatePreTokenizer(const JsonNode& node) {
  if (!node.exists()) return nullptr;
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, node["type"].String());
  if (type == "Sequence") return CreateSequence(node);
  if (type == "ByteLevel") return CreateByteLevel(node);
  if (type == "Metaspace") return CreateMetaspace(node);
  if (type == "Split") return CreateSplit(node);
  if (type == "Digits") {
    NIBBLE_ASSIGN_OR_RETURN(const bool individual, node["individual_digits"].BoolOr(false));
    return SplitAt(IsNumeric, individual ? Behavior::kIsolated : Behavior::kContiguous);
  }
  if (type == "Punctuation") {
    Behavior behavior = Behavior::kIsolated;
    if (node["behavior"].exists()) {
      NIBBLE_ASSIGN_OR_RETURN(behavior, ParseBehavior(node["behavior"]));
    }
    return SplitAt(IsPunctuation, behavior);
  }
  if (type == "WhitespaceSplit") return SplitAt(IsWhitespace, Behavior::kRemoved);
  if (type == "CharDelimiterSplit") {
    const JsonNode delimiter_node = node["delimiter"];
    NIBBLE_ASSIGN_OR_RETURN(const std::string delimiter, delimiter_node.String());
    if (delimiter.empty() || Utf8Length(delimiter[0]) != delimiter.size()) {
      return delimiter_node.Error("want one character");
    }
    size_t pos = 0;
    const char32_t wanted = NextCharacter(delimiter, &pos);
    return SplitAt([wanted](char32_t c) { return c == wanted; }, Behavior::kRemoved);
  }
  if (type == "Whitespace") {
    NIBBLE_ASSIGN_OR_RETURN(TextPattern pattern, TextPattern::FromRegex(R"(\w+|[^\w\s]+)"));
    return std::make_unique<PatternSplit>(std::move(pattern), Behavior::kRemoved, /*invert=*/true);
  }
  return node.Error(fmt::format("pre-tokenizer \"{}\" is not supported", type));
}

}  // namespace nibble::engine
