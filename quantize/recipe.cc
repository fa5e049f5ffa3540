// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/recipe.h"

#include <charconv>
#include <vector>

namespace nibble::quantize {
namespace {

constexpr int64_t kDefaultGroupSize = 128;

struct NamedRecipe {
  std::string_view name;
  Recipe recipe;
};
constexpr NamedRecipe kRecipes[] = {
    {"rtn", {}},
    {"gptq", {.rounding = Rounding::kGptq}},
    {"awq", {.equalization = Equalization::kAwq, .clip = true}},
    {"odyssey", {.clip = true, .rounding = Rounding::kGptq}},
    {"fptq", {.equalization = Equalization::kFptq, .rounding = Rounding::kGptq}},
};

// The place of a step in a recipe: there is one step for a place, and places ascend.
enum class Place { kEqualization, kClipping, kRounding };
struct Step {
  std::string_view name;
  Place place;
};
constexpr Step kSteps[] = {{"awq", Place::kEqualization},
                           {"fptq", Place::kEqualization},
                           {"clip", Place::kClipping},
                           {"rtn", Place::kRounding},
                           {"gptq", Place::kRounding}};

const Step* FindStep(std::string_view name) {
  for (const Step& step : kSteps) {
    if (step.name == name) return &step;
  }
  return nullptr;
}

std::vector<std::string_view> SplitAtCommas(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(',');
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

void Apply(const Step& step, Recipe* recipe) {
  if (step.name == "awq") recipe->equalization = Equalization::kAwq;
  if (step.name == "fptq") recipe->equalization = Equalization::kFptq;
  if (step.name == "clip") recipe->clip = true;
  if (step.name == "gptq") recipe->rounding = Rounding::kGptq;
}

absl::Status UnknownMethod(std::string_view name) {
  return Unimplemented(
      "method '{}' is not supported (supported: rtn, gptq, awq, odyssey, fptq, or a list of steps: "
      "one of awq, fptq; clip; one of rtn, gptq)",
      name);
}

}  // namespace

std::string_view ToString(Scheme scheme) {
  switch (scheme) {
    case Scheme::kW4A8:
      return "w4a8";
    case Scheme::kW8A8:
      return "w8a8";
    case Scheme::kW4A16:
      return "w4a16";
  }
  return "";
}

absl::StatusOr<Scheme> ParseScheme(std::string_view name) {
  for (const Scheme scheme : {Scheme::kW4A8, Scheme::kW8A8, Scheme::kW4A16}) {
    if (name == ToString(scheme)) return scheme;
  }
  return Unimplemented("scheme '{}' is not supported (supported: w4a8, w8a8, w4a16)", name);
}

int WeightBits(Scheme scheme) { return scheme == Scheme::kW8A8 ? 8 : 4; }
int ActivationBits(Scheme scheme) { return scheme == Scheme::kW4A16 ? 16 : 8; }

absl::StatusOr<int64_t> ParseGroupSize(std::string_view text, Scheme scheme) {
  if (text == "channel" || text == "-1") return kChannelGroup;
  if (scheme == Scheme::kW8A8) {
    if (text.empty()) return kChannelGroup;
    return InvalidArgument(
        "group size is {}: scheme w8a8 has one scale per output channel ('channel')", text);
  }
  if (text.empty()) return kDefaultGroupSize;
  int64_t size = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), size);
  if (error != std::errc() || end != text.data() + text.size() || size < 8 ||
      size > kMaxGroupSize || size % 8 != 0) {
    return InvalidArgument("group size is {}, must be a multiple of 8 in 8..{}, or 'channel'", text,
                           kMaxGroupSize);
  }
  return size;
}

std::string GroupSizeName(int64_t group_size) {
  return group_size == kChannelGroup ? "channel" : fmt::format("{}", group_size);
}

WeightScheme SchemeOf(Scheme scheme, int64_t group_size, int64_t k) {
  return {.bits = WeightBits(scheme),
          .group_size = group_size == kChannelGroup ? k : group_size,
          .folded_scales = true,
          .activation_bits = ActivationBits(scheme)};
}

absl::StatusOr<Recipe> ParseRecipe(std::string_view text) {
  for (const NamedRecipe& named : kRecipes) {
    if (text == named.name) return named.recipe;
  }
  Recipe recipe;
  const Step* last = nullptr;
  for (const std::string_view name : SplitAtCommas(text)) {
    const Step* step = FindStep(name);
    if (step == nullptr && name == "odyssey") {
      return InvalidArgument("method '{}': odyssey is a recipe of its own (clip,gptq)", text);
    }
    if (step == nullptr) return UnknownMethod(name);
    if (last == step) return InvalidArgument("method '{}': {} is given twice", text, name);
    if (last != nullptr && last->place == step->place) {
      return InvalidArgument("method '{}': {} and {} exclude each other", text, last->name, name);
    }
    if (last != nullptr && last->place > step->place) {
      return InvalidArgument("method '{}': {} comes before {}", text, step->name, last->name);
    }
    Apply(*step, &recipe);
    last = step;
  }
  if (last->place != Place::kRounding) {
    return InvalidArgument("method '{}' ends without a rounding: add rtn or gptq", text);
  }
  return recipe;
}

std::string ToString(const Recipe& recipe) {
  std::string text;
  if (recipe.equalization == Equalization::kAwq) text += "awq,";
  if (recipe.equalization == Equalization::kFptq) text += "fptq,";
  if (recipe.clip) text += "clip,";
  return text + (recipe.rounding == Rounding::kGptq ? "gptq" : "rtn");
}

}  // namespace nibble::quantize
