// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/sse_writer.h"

#include <iterator>

#include "fmt/format.h"

#include "base/utf8.h"

namespace nibble::server {
namespace {

void AppendEscaped(std::string_view text, std::string* out) {
  size_t plain = 0;  // start of the run that needs no escape
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x20 && byte != '"' && byte != '\\') continue;
    out->append(text.substr(plain, i - plain));
    plain = i + 1;
    switch (text[i]) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      default:
        fmt::format_to(std::back_inserter(*out), "\\u{:04x}", byte);
    }
  }
  out->append(text.substr(plain));
}

}  // namespace

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  AppendJsonEscaped(text, out);
  out->push_back('"');
}

void AppendJsonEscaped(std::string_view text, std::string* out) {
  if (IsValidUtf8(text)) {
    AppendEscaped(text, out);
  } else {
    AppendEscaped(ReplaceInvalidUtf8(text), out);
  }
}

std::string FormatAnswerHeader(const AnswerHeader& header) {
  std::string out = "{\"id\":";
  AppendJsonString(header.id, &out);
  out.append(",\"object\":");
  AppendJsonString(header.object, &out);
  fmt::format_to(std::back_inserter(out),
                 ",\"created\":{},\"model\":", header.created_unix_seconds);
  AppendJsonString(header.model, &out);
  out.append(",\"system_fingerprint\":");
  if (header.system_fingerprint.empty()) {
    out.append("null");
  } else {
    AppendJsonString(header.system_fingerprint, &out);
  }
  return out;
}

void AppendUsage(const Usage& usage, std::string* out) {
  fmt::format_to(std::back_inserter(*out),
                 "\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},"
                 "\"prompt_tokens_details\":{{\"cached_tokens\":{}}}}}",
                 usage.prompt_tokens, usage.completion_tokens,
                 usage.prompt_tokens + usage.completion_tokens, usage.cached_tokens);
}

void AppendFinish(const engine::RequestOutput& output, std::string* out) {
  if (!output.finish_reason.has_value()) {
    out->append("\"finish_reason\":null,\"stop_reason\":null");
    return;
  }
  out->append(*output.finish_reason == engine::FinishReason::kLength
                  ? "\"finish_reason\":\"length\""
                  : "\"finish_reason\":\"stop\"");
  out->append(",\"stop_reason\":");
  if (const auto* text = std::get_if<std::string>(&output.stop_reason)) {
    AppendJsonString(*text, out);
  } else if (const auto* id = std::get_if<int32_t>(&output.stop_reason)) {
    out->append(std::to_string(*id));
  } else {
    out->append("null");
  }
}

std::string SseEvent(std::string_view json) {
  std::string out;
  out.reserve(json.size() + 8);
  out.append("data: ").append(json).append("\n\n");
  return out;
}

}  // namespace nibble::server
