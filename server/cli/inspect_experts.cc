// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/inspect_experts.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "base/mapped_file.h"
#include "client/http/http_client.h"
#include "engine/moe/expert_layout.h"
#include "engine/moe/placement.h"
#include "server/cli/model_setup.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxLoadFileBytes = size_t{64} << 20;
constexpr int64_t kMaxRanks = 64;
constexpr size_t kMaxColumns = 16;  // of experts in a table; with more, the fullest ones
constexpr size_t kFullest = 4;

// The number in `name="..."`; nullopt when there is none within 0..limit - 1.
std::optional<int64_t> NumberLabel(std::string_view labels, std::string_view name, int64_t limit) {
  const std::string begin = fmt::format("{}=\"", name);
  const size_t found = labels.find(begin);
  if (found == std::string_view::npos) return std::nullopt;
  int64_t value = -1;
  std::from_chars(labels.data() + found + begin.size(), labels.data() + labels.size(), value);
  if (value < 0 || value >= limit) return std::nullopt;
  return value;
}

struct Sample {
  int64_t layer = 0;
  int64_t expert = 0;
  uint64_t tokens = 0;
};

// What follows the metric's name on a line.
absl::StatusOr<Sample> ParseSample(std::string_view line, const std::string& where) {
  const size_t end = line.rfind("} ");
  if (end != std::string_view::npos) {
    const std::string_view labels = line.substr(0, end);
    const auto layer = NumberLabel(labels, "layer", engine::kMaxLayoutLayers);
    const auto expert = NumberLabel(labels, "expert", engine::kMaxSlots);
    double tokens = -1.0;
    std::from_chars(line.data() + end + 2, line.data() + line.size(), tokens);
    if (layer && expert && tokens >= 0.0 && tokens < 1e18) {
      return Sample{*layer, *expert, static_cast<uint64_t>(tokens)};
    }
  }
  return InvalidArgument("{}: no count of tokens: '{}'", where, line.substr(0, 200));
}

absl::StatusOr<engine::ExpertLoad> ReadLoad(const std::string& source,
                                            const client::ClientSecurity& security) {
  NIBBLE_RETURN_IF_ERROR(security.Validate());
  if (source.rfind("http://", 0) != 0 && source.rfind("https://", 0) != 0) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(source, kMaxLoadFileBytes));
    return engine::ParseExpertLoad(text, source);
  }
  NIBBLE_ASSIGN_OR_RETURN(client::Url url, client::Url::Parse(source));
  // A server's address as other commands and clients take it, or of the metrics themselves.
  constexpr std::string_view kMetrics = "/metrics";
  if (url.prefix.ends_with(kMetrics)) url.prefix.resize(url.prefix.size() - kMetrics.size());
  NIBBLE_ASSIGN_OR_RETURN(const client::HttpResponse response,
                          client::HttpClient(std::move(url), security).Get(kMetrics));
  if (response.status == 401) {
    return Unavailable(
        "{}: /metrics asks for a key: --api-key, or NIBBLE_API_KEY in the environment", source);
  }
  if (response.status != 200) {
    return Unavailable("{}: /metrics answers with status {}", source, response.status);
  }
  return ExpertLoadOfMetrics(response.body, source);
}

// Numbers of ranks whose balance is shown.
std::vector<int64_t> RankNumbers(const InspectOptions& options, int64_t num_experts) {
  if (options.expert_parallel_size > 0) return {options.expert_parallel_size};
  std::vector<int64_t> numbers;
  for (int64_t ranks = 2; ranks <= std::min(num_experts, kMaxRanks); ranks *= 2) {
    if (num_experts % ranks == 0) numbers.push_back(ranks);
  }
  return numbers;
}

// A way to share the experts, and how even it is.
struct Sharing {
  int64_t num_ranks = 1;
  std::string name;             // "EP4", "EP4 +8"
  std::vector<double> balance;  // by layer
};

absl::StatusOr<std::vector<Sharing>> Sharings(const InspectOptions& options,
                                              const engine::ExpertLoad& load) {
  std::vector<Sharing> sharings;
  for (const int64_t ranks : RankNumbers(options, load.num_experts)) {
    const auto even = engine::ExpertLayout::Uniform(load.num_layers, load.num_experts);
    NIBBLE_RETURN_IF_ERROR(
        engine::CheckExpertLayout(even, load.num_layers, load.num_experts, ranks));
    sharings.push_back(
        {ranks, fmt::format("EP{}", ranks), engine::Balancedness(load, even, ranks)});
    if (options.num_redundant_experts == 0) continue;
    const absl::StatusOr<engine::ExpertLayout> placed = engine::PlaceExperts(
        load, {.num_slots = load.num_experts + options.num_redundant_experts, .num_ranks = ranks});
    if (!placed.ok()) {
      if (options.expert_parallel_size > 0) return placed.status();
      continue;  // one of several numbers of ranks
    }
    sharings.push_back({ranks, fmt::format("EP{} +{}", ranks, options.num_redundant_experts),
                        engine::Balancedness(load, *placed, ranks)});
  }
  return sharings;
}

std::vector<uint64_t> TokensOf(const engine::ExpertLoad& load, int64_t layer) {
  const auto first = load.tokens.begin() + layer * load.num_experts;
  return {first, first + load.num_experts};
}

nlohmann::ordered_json Describe(const InspectOptions& options, const engine::ExpertLoad& load,
                                const std::vector<Sharing>& sharings) {
  nlohmann::ordered_json json = {{"source", options.experts},
                                 {"num_layers", load.num_layers},
                                 {"num_experts", load.num_experts},
                                 {"layers", nlohmann::ordered_json::array()}};
  for (int64_t layer = 0; layer < load.num_layers; ++layer) {
    const std::vector<uint64_t> tokens = TokensOf(load, layer);
    const uint64_t sum = std::accumulate(tokens.begin(), tokens.end(), uint64_t{0});
    nlohmann::ordered_json balance = nlohmann::ordered_json::object();
    for (const Sharing& sharing : sharings) {
      balance[sharing.name] = sharing.balance[static_cast<size_t>(layer)];
    }
    json["layers"].push_back(
        {{"layer", layer}, {"tokens", sum}, {"experts", tokens}, {"balancedness", balance}});
  }
  return json;
}

// "12.5 11.9 ..." of all experts, or the fullest: "17: 3.1  4: 2.9".
std::string Shares(const std::vector<uint64_t>& tokens, uint64_t sum) {
  const auto percent = [&](size_t expert) {
    return 100.0 * static_cast<double>(tokens[expert]) / static_cast<double>(sum);
  };
  std::string text;
  if (tokens.size() <= kMaxColumns) {
    for (size_t expert = 0; expert < tokens.size(); ++expert) {
      text += fmt::format("{:6.1f}", percent(expert));
    }
    return text;
  }
  std::vector<size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return tokens[a] > tokens[b]; });
  for (size_t i = 0; i < kFullest; ++i) {
    text += fmt::format("{:>6}: {:4.1f}", order[i], percent(order[i]));
  }
  return text;
}

void PrintTable(const engine::ExpertLoad& load, const std::vector<Sharing>& sharings) {
  const bool all = load.num_experts <= static_cast<int64_t>(kMaxColumns);
  fmt::print(
      "{} layers, {} experts; shares in percent of a layer's tokens{}; balancedness of "
      "ranks: mean / max, 1 is ideal\n",
      load.num_layers, load.num_experts, all ? "" : " (of the fullest experts)");
  fmt::print("{:>5} {:>12} ", "layer", "tokens");
  if (all) {
    for (int64_t expert = 0; expert < load.num_experts; ++expert) fmt::print("{:>6}", expert);
  } else {
    fmt::print("{:>{}}", "expert: share", kFullest * 12);
  }
  for (const Sharing& sharing : sharings) fmt::print("  {:>8}", sharing.name);
  fmt::print("\n");
  for (int64_t layer = 0; layer < load.num_layers; ++layer) {
    const std::vector<uint64_t> tokens = TokensOf(load, layer);
    const uint64_t sum = std::accumulate(tokens.begin(), tokens.end(), uint64_t{0});
    if (sum == 0) {
      fmt::print("{:>5} {:>12} \n", layer, "none");
      continue;
    }
    fmt::print("{:>5} {:>12} {}", layer, sum, Shares(tokens, sum));
    for (const Sharing& sharing : sharings) {
      fmt::print("  {:>8.3f}", sharing.balance[static_cast<size_t>(layer)]);
    }
    fmt::print("\n");
  }
}

absl::Status Validate(const InspectOptions& options) {
  std::vector<std::string> violations;
  if (!options.model.empty()) violations.push_back("--experts shows a load: want no MODEL beside");
  if (options.tensors) violations.push_back("--tensors is of a MODEL: want it without --experts");
  if (options.expert_parallel_size < 0 || options.expert_parallel_size > kMaxRanks) {
    violations.push_back(fmt::format("--expert-parallel-size is {}, want 0 to {}",
                                     options.expert_parallel_size, kMaxRanks));
  }
  if (options.num_redundant_experts < 0 || options.num_redundant_experts > engine::kMaxSlots) {
    violations.push_back(fmt::format("--num-redundant-experts is {}, want 0 to {}",
                                     options.num_redundant_experts, engine::kMaxSlots));
  }
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

}  // namespace

absl::StatusOr<engine::ExpertLoad> ExpertLoadOfMetrics(std::string_view metrics,
                                                       const std::string& where) {
  constexpr std::string_view kName = "nibble:moe_expert_tokens_total{";
  std::vector<Sample> samples;
  engine::ExpertLoad load;
  while (!metrics.empty()) {
    const std::string_view line = metrics.substr(0, metrics.find('\n'));
    metrics.remove_prefix(std::min(line.size() + 1, metrics.size()));
    if (line.substr(0, kName.size()) != kName) continue;
    NIBBLE_ASSIGN_OR_RETURN(const Sample sample, ParseSample(line.substr(kName.size()), where));
    load.num_layers = std::max(load.num_layers, sample.layer + 1);
    load.num_experts = std::max(load.num_experts, sample.expert + 1);
    samples.push_back(sample);
  }
  if (samples.empty()) {
    return NotFound(
        "{}: no nibble:moe_expert_tokens_total: the model is dense, or has more pairs of layer "
        "and expert than --max-expert-series of the server",
        where);
  }
  load.tokens.resize(static_cast<size_t>(load.num_layers * load.num_experts));
  for (const Sample& sample : samples) {
    load.tokens[static_cast<size_t>(sample.layer * load.num_experts + sample.expert)] =
        sample.tokens;
  }
  return load;
}

absl::Status InspectExperts(const InspectOptions& options) {
  NIBBLE_RETURN_IF_ERROR(Validate(options));
  NIBBLE_ASSIGN_OR_RETURN(const engine::ExpertLoad load,
                          ReadLoad(options.experts, options.security));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Sharing> sharings, Sharings(options, load));
  if (options.json) {
    fmt::print("{}\n", DumpJson(Describe(options, load, sharings)));
  } else {
    PrintTable(load, sharings);
  }
  return absl::OkStatus();
}

}  // namespace nibble::cli
