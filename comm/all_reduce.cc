// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/all_reduce.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <utility>

#include "base/check.h"

namespace nibble::comm {
namespace {

using Mode = AllReduceOptions::Mode;

// What a cache file or a message may hold.
constexpr size_t kMaxChoices = 64;

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

std::string BytesToString(int64_t bytes) {
  if (bytes >= 1 << 20 && bytes % (1 << 20) == 0) return fmt::format("{} MiB", bytes >> 20);
  if (bytes >= 1 << 10 && bytes % (1 << 10) == 0) return fmt::format("{} KiB", bytes >> 10);
  return fmt::format("{} bytes", bytes);
}

// Up to the next `separator`, which is taken away too.
std::string_view TakeField(std::string_view* text, char separator) {
  const size_t end = text->find(separator);
  const std::string_view field = text->substr(0, end);
  text->remove_prefix(end == std::string_view::npos ? text->size() : end + 1);
  return field;
}

bool ParseNumber(std::string_view text, int64_t* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// One of two words.
bool ParseEither(std::string_view text, std::string_view no, std::string_view yes, bool* is_yes) {
  *is_yes = text == yes;
  return text == yes || text == no;
}

// "65536,one-shot,4,128,bf16,spikes,plain"
bool ParseChoice(std::string_view text, AllReduceChoice* choice) {
  int64_t bits = 0;
  int64_t group_size = 0;
  bool two_shot = false;
  bool log2 = false;
  const bool ok = ParseNumber(TakeField(&text, ','), &choice->max_bytes) &&
                  ParseEither(TakeField(&text, ','), "one-shot", "two-shot", &two_shot) &&
                  ParseNumber(TakeField(&text, ','), &bits) && bits > 0 && bits <= 32 &&
                  ParseNumber(TakeField(&text, ','), &group_size) && group_size > 0 &&
                  group_size <= 1024 && ParseEither(TakeField(&text, ','), "bf16", "log2", &log2) &&
                  ParseEither(TakeField(&text, ','), "-", "spikes", &choice->codec.spikes) &&
                  ParseEither(text, "-", "rotation", &choice->codec.rotation);
  choice->algorithm = two_shot ? Algorithm::kTwoShot : Algorithm::kOneShot;
  choice->codec.bits = static_cast<int>(bits);
  choice->codec.group_size = static_cast<int>(group_size);
  choice->codec.scale = log2 ? ScaleFormat::kLog2Int8 : ScaleFormat::kBf16;
  return ok;
}

}  // namespace

absl::StatusOr<AllReduceOptions> ParseAllReduce(std::string_view name) {
  if (name == "auto") return AllReduceOptions{.mode = Mode::kAuto};
  if (name == "none") return AllReduceOptions{.mode = Mode::kNone};
  constexpr std::array<std::pair<std::string_view, int>, 8> kWidths = {{{"float32", 32},
                                                                        {"bf16", 16},
                                                                        {"int8", 8},
                                                                        {"int6", 6},
                                                                        {"int5", 5},
                                                                        {"int4", 4},
                                                                        {"int3", 3},
                                                                        {"int2", 2}}};
  for (const auto& [width, bits] : kWidths) {
    if (name == width) return AllReduceOptions{.mode = Mode::kFixed, .codec = {.bits = bits}};
  }
  return InvalidArgument(
      "all-reduce '{}' is none of auto, none, float32, bf16, int8, int6, int5, int4, int3, int2",
      name);
}

std::string_view ToString(Algorithm algorithm) {
  return algorithm == Algorithm::kOneShot ? "one-shot" : "two-shot";
}

const AllReduceChoice& AllReducePolicy::For(int64_t message_bytes) const {
  const auto found = std::find_if(
      choices.begin(), choices.end(),
      [&](const AllReduceChoice& choice) { return message_bytes <= choice.max_bytes; });
  NIBBLE_CHECK(found != choices.end());
  return *found;
}

absl::Status AllReducePolicy::Validate() const {
  if (choices.empty() || choices.size() > kMaxChoices) {
    return InvalidArgument("an all-reduce policy has {} choices, it must have 1 to {}",
                           choices.size(), kMaxChoices);
  }
  int64_t previous = -1;
  for (const AllReduceChoice& choice : choices) {
    if (choice.max_bytes <= previous) {
      return InvalidArgument("an all-reduce policy has a choice up to {} bytes after one up to {}",
                             choice.max_bytes, previous);
    }
    previous = choice.max_bytes;
    NIBBLE_RETURN_IF_ERROR(Annotate(comm::Validate(choice.codec), "an all-reduce policy"));
  }
  if (previous != kNoLimit) {
    return InvalidArgument("an all-reduce policy ends at {} bytes, its last choice must have none",
                           previous);
  }
  return absl::OkStatus();
}

std::string ToString(const AllReducePolicy& policy) {
  std::string text;
  for (const AllReduceChoice& choice : policy.choices) {
    if (!text.empty()) text += "; ";
    text += choice.max_bytes == kNoLimit ? (text.empty() ? "all sizes" : "above")
                                         : fmt::format("up to {}", BytesToString(choice.max_bytes));
    text += fmt::format(": {} {}", ToString(choice.algorithm), ToString(choice.codec));
  }
  return text;
}

std::string Serialize(const AllReducePolicy& policy) {
  std::string text;
  for (const AllReduceChoice& choice : policy.choices) {
    text +=
        fmt::format("{}{},{},{},{},{},{},{}", text.empty() ? "" : ";", choice.max_bytes,
                    ToString(choice.algorithm), choice.codec.bits, choice.codec.group_size,
                    choice.codec.scale == ScaleFormat::kBf16 ? "bf16" : "log2",
                    choice.codec.spikes ? "spikes" : "-", choice.codec.rotation ? "rotation" : "-");
  }
  return text;
}

absl::StatusOr<AllReducePolicy> ParsePolicy(std::string_view text) {
  if (static_cast<int64_t>(text.size()) > kMaxPolicyText) {
    return InvalidArgument("an all-reduce policy of {} bytes, the limit is {}", text.size(),
                           kMaxPolicyText);
  }
  AllReducePolicy policy;
  while (!text.empty()) {
    const std::string_view field = TakeField(&text, ';');
    AllReduceChoice choice;
    if (!ParseChoice(field, &choice)) {
      return InvalidArgument("'{}' is no choice of an all-reduce policy", field);
    }
    policy.choices.push_back(choice);
  }
  NIBBLE_RETURN_IF_ERROR(policy.Validate());
  return policy;
}

}  // namespace nibble::comm
