// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/chunk_event.h"

#include <array>
#include <limits>

#include "nlohmann/json.hpp"

namespace nibble::client {
namespace {

enum class Key : uint8_t {
  kOther,
  kItem,  // of an array
  kChoices,
  kText,
  kDelta,
  kContent,
  kReasoning,
  kToolCalls,
  kFinishReason,
  kUsage,
  kPromptTokens,
  kCompletionTokens,
  kError,
  kMessage,
};

Key ToKey(std::string_view name) {
  if (name == "choices") return Key::kChoices;
  if (name == "text") return Key::kText;
  if (name == "delta") return Key::kDelta;
  if (name == "content") return Key::kContent;
  if (name == "reasoning" || name == "reasoning_content") return Key::kReasoning;
  if (name == "tool_calls") return Key::kToolCalls;
  if (name == "finish_reason") return Key::kFinishReason;
  if (name == "usage") return Key::kUsage;
  if (name == "prompt_tokens") return Key::kPromptTokens;
  if (name == "completion_tokens") return Key::kCompletionTokens;
  if (name == "error") return Key::kError;
  if (name == "message") return Key::kMessage;
  return Key::kOther;
}

// Follows the path to the value that is read: choices / item / delta / content.
class Reader {
 public:
  Reader(bool chat, ChunkEvent* event) : chat_(chat), event_(event) {}

  bool null() { return true; }
  bool boolean(bool) { return Value(); }
  bool number_integer(int64_t value) { return Number(value); }
  bool number_unsigned(uint64_t value) {
    return Number(value <= std::numeric_limits<int64_t>::max() ? static_cast<int64_t>(value) : -1);
  }
  bool number_float(double, const std::string&) { return Value(); }
  bool binary(nlohmann::json::binary_t&) { return Value(); }
  bool string(std::string& value) {
    if (At({Key::kError}) || At({Key::kError, Key::kMessage})) event_->error = value;
    if (At({Key::kChoices, Key::kItem, Key::kFinishReason})) event_->finish_reason = value;
    if (chat_ && !value.empty() && path_[3] == Key::kDelta &&
        (At({Key::kChoices, Key::kItem, Key::kDelta, Key::kContent}) ||
         At({Key::kChoices, Key::kItem, Key::kDelta, Key::kReasoning}))) {
      event_->has_tokens = true;
    }
    return Value();
  }
  bool start_object(size_t) {
    if (!chat_ && At({Key::kChoices, Key::kItem})) event_->has_tokens = true;
    if (chat_ && depth_ > 4 && path_[1] == Key::kChoices && path_[3] == Key::kDelta &&
        path_[4] == Key::kToolCalls) {
      event_->has_tokens = true;
    }
    return Value() && Down(Key::kOther);
  }
  bool key(std::string& name) {
    SetKey(ToKey(name));
    return true;
  }
  bool end_object() { return Up(); }
  bool start_array(size_t) { return Value() && Down(Key::kItem); }
  bool end_array() { return Up(); }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) { return false; }

 private:
  static constexpr size_t kMaxDepth = 6;  // deeper values are not looked at

  // The value that comes is at these keys, from the outermost.
  bool At(std::initializer_list<Key> keys) const {
    if (depth_ != keys.size()) return false;
    size_t depth = 1;
    for (const Key key : keys) {
      if (path_[depth++] != key) return false;
    }
    return true;
  }
  bool Value() {
    if (depth_ >= 1 && path_[1] == Key::kError) event_->is_error = true;
    return true;
  }
  bool Number(int64_t value) {
    if (At({Key::kUsage, Key::kPromptTokens})) event_->prompt_tokens = value;
    if (At({Key::kUsage, Key::kCompletionTokens})) event_->completion_tokens = value;
    return Value();
  }
  bool Down(Key key) {
    ++depth_;
    SetKey(key);
    return true;
  }
  bool Up() {
    --depth_;
    return true;
  }
  void SetKey(Key key) {
    if (depth_ < path_.size()) path_[depth_] = key;
  }

  const bool chat_;
  ChunkEvent* const event_;
  size_t depth_ = 0;
  std::array<Key, kMaxDepth> path_{};  // path_[d]: where in the container at depth d
};

}  // namespace

bool ParseChunkEvent(std::string_view json, bool chat, ChunkEvent* event) {
  *event = {};
  Reader reader(chat, event);
  return nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
}

}  // namespace nibble::client
