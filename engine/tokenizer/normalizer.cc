// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/normalizer.h"

#include <utility>
#include <vector>

#include "engine/tokenizer/charsmap.h"
#include "engine/tokenizer/text_pattern.h"
#include "engine/tokenizer/unicode.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxSteps = 64;

class UnicodeNormalizer : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalForm form) : form_(form) {}
  absl::StatusOr<std::string> Rewrite(std::string_view text,
                                      const TextLimit& /*limit*/) const override {
    return Normalize(text, form_);
  }

 private:
  NormalForm form_;
};

// Character by character: `Map` appends what becomes of one.
template <typename Map>
class CharacterNormalizer : public Normalizer {
 public:
  explicit CharacterNormalizer(Map map) : map_(std::move(map)) {}
  absl::StatusOr<std::string> Rewrite(std::string_view text,
                                      const TextLimit& /*limit*/) const override {
    std::string result;
    result.reserve(text.size());
    for (size_t pos = 0; pos < text.size();) map_(NextCharacter(text, &pos), &result);
    return result;
  }

 private:
  Map map_;
};

template <typename Map>
std::unique_ptr<Normalizer> PerCharacter(Map map) {
  return std::make_unique<CharacterNormalizer<Map>>(std::move(map));
}

// The rules SentencePiece's "nmt" normalization adds: control characters vanish, odd blanks become
// spaces.
void AppendNmt(char32_t c, std::string* out) {
  if ((c >= 0x01 && c <= 0x08) || c == 0x0b || (c >= 0x0e && c <= 0x1f) || c == 0x7f || c == 0x8f ||
      c == 0x9f) {
    return;
  }
  const bool blank = c == 0x09 || c == 0x0a || c == 0x0c || c == 0x0d || c == 0x1680 ||
                     (c >= 0x200b && c <= 0x200f) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                     c == 0xfeff || c == 0xfffd;
  AppendUtf8(blank ? U' ' : c, out);
}

class PrependNormalizer : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  absl::StatusOr<std::string> Rewrite(std::string_view text,
                                      const TextLimit& /*limit*/) const override {
    return text.empty() ? std::string() : prefix_ + std::string(text);
  }

 private:
  std::string prefix_;
};

class ReplaceNormalizer : public Normalizer {
 public:
  ReplaceNormalizer(TextPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  absl::StatusOr<std::string> Rewrite(std::string_view text,
                                      const TextLimit& limit) const override {
    return pattern_.Replace(text, content_, limit);
  }

 private:
  TextPattern pattern_;
  std::string content_;
};

class StripNormalizer : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  absl::StatusOr<std::string> Rewrite(std::string_view text,
                                      const TextLimit& /*limit*/) const override {
    size_t begin = 0;
    while (left_ && begin < text.size()) {
      size_t next = begin;
      if (!IsWhitespace(NextCharacter(text, &next))) break;
      begin = next;
    }
    text.remove_prefix(begin);
    while (right_ && !text.empty()) {
      const char32_t last = LastCharacter(text);
      if (!IsWhitespace(last)) break;
      text.remove_suffix(ToUtf8(last).size());
    }
    return std::string(text);
  }

 private:
  bool left_;
  bool right_;
};

// SentencePiece's map as the `tokenizers` library applies it: to whole grapheme clusters of up to
// five bytes, else to characters, each time by the shortest entry that fits.
class PrecompiledNormalizer : public Normalizer {
 public:
  explicit PrecompiledNormalizer(Charsmap map) : map_(std::move(map)) {}
  absl::StatusOr<std::string> Rewrite(std::string_view text,
                                      const TextLimit& limit) const override {
    std::string result;
    result.reserve(text.size());
    while (!text.empty()) {
      const std::string_view cluster = text.substr(0, GraphemeLength(text));
      text.remove_prefix(cluster.size());
      const Charsmap::Match whole =
          cluster.size() < 6 ? map_.ShortestPrefix(cluster) : Charsmap::Match{};
      if (whole.length > 0) {
        result += whole.replacement;
        NIBBLE_RETURN_IF_ERROR(limit.Check(result.size()));
        continue;
      }
      for (size_t pos = 0; pos < cluster.size();) {
        const std::string_view part = cluster.substr(pos, Utf8Length(cluster[pos]));
        const Charsmap::Match match = map_.ShortestPrefix(part);
        result += match.length > 0 ? match.replacement : part;
        pos += part.size();
        NIBBLE_RETURN_IF_ERROR(limit.Check(result.size()));
      }
    }
    return result;
  }

 private:
  Charsmap map_;
};

class SequenceNormalizer : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> steps)
      : steps_(std::move(steps)) {}
  absl::StatusOr<std::string> Rewrite(std::string_view text,
                                      const TextLimit& limit) const override {
    std::string result(text);
    for (const auto& step : steps_) {
      NIBBLE_ASSIGN_OR_RETURN(result, step->Apply(result, limit));
    }
    return result;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

absl::StatusOr<std::unique_ptr<Normalizer>> CreateSequence(const JsonNode& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<JsonNode> nodes, node["normalizers"].Elements());
  if (nodes.size() > kMaxSteps) {
    return node.Error(fmt::format("{} normalizers, the limit is {}", nodes.size(), kMaxSteps));
  }
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (const JsonNode& element : nodes) {
    NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<Normalizer> step, CreateNormalizer(element));
    if (step == nullptr) return element.Error("want a normalizer");
    steps.push_back(std::move(step));
  }
  return std::make_unique<SequenceNormalizer>(std::move(steps));
}

absl::StatusOr<std::unique_ptr<Normalizer>> CreatePrecompiled(const JsonNode& node) {
  const JsonNode map_node = node["precompiled_charsmap"];
  if (!map_node.exists()) return std::make_unique<PrecompiledNormalizer>(Charsmap());
  NIBBLE_ASSIGN_OR_RETURN(const std::string encoded, map_node.String());
  const absl::StatusOr<std::string> blob = DecodeBase64(encoded);
  if (!blob.ok()) return map_node.Error(std::string(blob.status().message()));
  absl::StatusOr<Charsmap> map = Charsmap::Parse(*blob);
  if (!map.ok()) return map_node.Error(std::string(map.status().message()));
  return std::make_unique<PrecompiledNormalizer>(std::move(map).value());
}

}  // namespace

absl::StatusOr<std::string> Normalizer::Apply(std::string_view text, const TextLimit& limit) const {
  absl::StatusOr<std::string> result = Rewrite(text, limit);
  if (result.ok()) NIBBLE_RETURN_IF_ERROR(limit.Check(result->size()));
  return result;
}

absl::StatusOr<std::unique_ptr<Normalizer>> CreateNormalizer(const JsonNode& node) {
  if (!node.exists()) return nullptr;
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, node["type"].String());
  if (type == "Sequence") return CreateSequence(node);
  if (type == "NFC") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfc);
  if (type == "NFD") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfd);
  if (type == "NFKC") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfkc);
  if (type == "NFKD") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfkd);
  if (type == "Lowercase") return PerCharacter(AppendLowercase);
  if (type == "Nmt") return PerCharacter(AppendNmt);
  if (type == "StripAccents") {
    return PerCharacter([](char32_t c, std::string* out) {
      if (!IsMark(c)) AppendUtf8(c, out);
    });
  }
  if (type == "ByteLevel") {
    return PerCharacter([](char32_t c, std::string* out) {
      for (const char byte : ToUtf8(c)) *out += ByteAlphabet()[static_cast<uint8_t>(byte)];
    });
  }
  if (type == "Prepend") {
    NIBBLE_ASSIGN_OR_RETURN(std::string prefix, node["prepend"].String());
    return std::make_unique<PrependNormalizer>(std::move(prefix));
  }
  if (type == "Replace") {
    NIBBLE_ASSIGN_OR_RETURN(TextPattern pattern, TextPattern::Create(node["pattern"]));
    NIBBLE_ASSIGN_OR_RETURN(std::string content, node["content"].String());
    return std::make_unique<ReplaceNormalizer>(std::move(pattern), std::move(content));
  }
  if (type == "Strip") {
    NIBBLE_ASSIGN_OR_RETURN(const bool left, node["strip_left"].Bool());
    NIBBLE_ASSIGN_OR_RETURN(const bool right, node["strip_right"].Bool());
    return std::make_unique<StripNormalizer>(left, right);
  }
  if (type == "Precompiled") return CreatePrecompiled(node);
  return node.Error(fmt::format("normalizer \"{}\" is not supported", type));
}

}  // namespace nibble::engine
