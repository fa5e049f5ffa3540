// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/post_processor.h"

#include <string>
#include <utility>

#include "engine/tokenizer/token_model.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxSpecialTokens = 1024;

// "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, ...], with the ids of
// every name under "special_tokens".
absl::StatusOr<PostProcessor> CreateTemplate(const JsonNode& node) {
  PostProcessor result;
  bool seen_text = false;
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<JsonNode> elements, node["single"].Elements());
  if (elements.size() > kMaxSpecialTokens) {
    return node.Error(fmt::format("a template of {} elements, the limit is {}", elements.size(),
                                  kMaxSpecialTokens));
  }
  for (const JsonNode& element : elements) {
    if (element["Sequence"].exists()) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string id, element["Sequence"]["id"].String());
      if (id != "A" || seen_text) return element.Error("a single text is sequence A, once");
      seen_text = true;
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string name, element["SpecialToken"]["id"].String());
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<JsonNode> ids,
                            node["special_tokens"][name]["ids"].Elements());
    for (const JsonNode& id_node : ids) {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t id, id_node.Int(0, kMaxTokenId));
      (seen_text ? result.suffix : result.prefix).push_back(static_cast<int32_t>(id));
    }
  }
  if (!seen_text) return node["single"].Error("sequence A is missing");
  if (result.prefix.size() + result.suffix.size() > kMaxSpecialTokens) {
    return node.Error(fmt::format("more than {} special tokens", kMaxSpecialTokens));
  }
  return result;
}

absl::StatusOr<PostProcessor> CreateSequence(const JsonNode& node) {
  PostProcessor result;
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<JsonNode> elements, node["processors"].Elements());
  for (const JsonNode& element : elements) {
    NIBBLE_ASSIGN_OR_RETURN(PostProcessor step, CreatePostProcessor(element));
    result.prefix.insert(result.prefix.begin(), step.prefix.begin(), step.prefix.end());
    result.suffix.insert(result.suffix.end(), step.suffix.begin(), step.suffix.end());
    if (result.prefix.size() + result.suffix.size() > kMaxSpecialTokens) {
      return node.Error(fmt::format("more than {} special tokens", kMaxSpecialTokens));
    }
  }
  return result;
}

// ["</s>", 2] as BertProcessing and RobertaProcessing write a token.
absl::StatusOr<int32_t> ReadPair(const JsonNode& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<JsonNode> elements, node.Elements());
  if (elements.size() != 2) return node.Error("want [token, id]");
  NIBBLE_ASSIGN_OR_RETURN(const int64_t id, elements[1].Int(0, kMaxTokenId));
  return static_cast<int32_t>(id);
}

}  // namespace

absl::StatusOr<PostProcessor> CreatePostProcessor(const JsonNode& node) {
  if (!node.exists()) return PostProcessor{};
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, node["type"].String());
  if (type == "ByteLevel")
    return PostProcessor{};  // corrects offsets, which nibble does not report
  if (type == "TemplateProcessing") return CreateTemplate(node);
  if (type == "Sequence") return CreateSequence(node);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    NIBBLE_ASSIGN_OR_RETURN(const int32_t first, ReadPair(node["cls"]));
    NIBBLE_ASSIGN_OR_RETURN(const int32_t last, ReadPair(node["sep"]));
    return PostProcessor{{first}, {last}};
  }
  return node.Error(fmt::format("post-processor \"{}\" is not supported", type));
}

}  // namespace nibble::engine
