// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble eval perplexity
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "base/clock.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "comm/group.h"
#include "engine/exec/perplexity.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/cli/all_reduce_setup.h"
#include "server/cli/commands.h"
#include "server/cli/model_setup.h"
#include "server/cli/progress.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;
constexpr int kMaxRanks = 64;  // of comm::MakeThreadGroup

void ValidateRanks(const PerplexityOptions& options, std::vector<std::string>* violations) {
  const server::AllReduceFlags& flags = options.all_reduce;
  flags.Validate(violations);
  if (options.tensor_parallel_size < 1 || options.tensor_parallel_size > kMaxRanks) {
    violations->push_back(fmt::format("--tensor-parallel-size is {}, want 1 to {}",
                                      options.tensor_parallel_size, kMaxRanks));
  }
  if (flags.all_reduce == "auto") {
    violations->push_back(
        "--all-reduce auto goes by measured links, which ranks in one process do not have; name "
        "what is to be evaluated");
  }
  if (options.tensor_parallel_size == 1 && flags.all_reduce != "none") {
    violations->push_back(
        fmt::format("--all-reduce {} needs --tensor-parallel-size 2 or more", flags.all_reduce));
  }
}

absl::Status Validate(const PerplexityOptions& options) {
  std::vector<std::string> violations;
  options.model.Validate(&violations);
  if (options.context < 2)
    violations.push_back(fmt::format("--context is {}, want at least 2", options.context));
  if (options.stride < 1 || options.stride > options.context) {
    violations.push_back(
        fmt::format("--stride is {}, want 1 to --context ({})", options.stride, options.context));
  }
  if (options.limit < 0)
    violations.push_back(fmt::format("--limit is {}, want 0 or more", options.limit));
  ValidateRanks(options, &violations);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

// A model in shares, the ranks' threads, and what joins them.
struct Ranks {
  DeviceChoice device;
  std::unique_ptr<engine::Tokenizer> tokenizer;
  std::vector<std::unique_ptr<ThreadPool>> pools;
  std::vector<std::unique_ptr<engine::Model>> models;
  std::vector<std::unique_ptr<comm::Communicator>> group;
};

// Loads the shares one after the other, each with all threads.
absl::Status LoadShares(const PerplexityOptions& options, Ranks* ranks) {
  ThreadPool pool(ranks->device.threads, ranks->device.cpus);
  Progress progress("loading weights", "MB", {.divisor = 1'000'000});
  int64_t earlier = 0;  // bytes of shares that are loaded
  for (int rank = 0; rank < options.tensor_parallel_size; ++rank) {
    engine::LoadOptions load = ToLoadOptions(options.model, ranks->device.isa);
    load.tensor_parallel = {.rank = rank, .size = options.tensor_parallel_size};
    int64_t share = 0;
    load.progress = [&](int64_t done, int64_t total) {
      share = total;
      progress.Update(earlier + done, earlier + total * (options.tensor_parallel_size - rank));
    };
    NIBBLE_ASSIGN_OR_RETURN(auto model, engine::Model::Load(options.model.model, load, &pool));
    ranks->models.push_back(std::move(model));
    earlier += share;
  }
  for (const std::string& warning : ranks->models[0]->warnings()) log::Warning("{}", warning);
  return CheckTokenizer(options.model.model, *ranks->tokenizer, ranks->models[0]->config());
}

absl::StatusOr<Ranks> LoadRanks(const PerplexityOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckModelDirectory(options.model.model));
  NIBBLE_ASSIGN_OR_RETURN(const comm::AllReduceOptions all_reduce,
                          ToAllReduceOptions(options.all_reduce));
  Ranks ranks;
  NIBBLE_ASSIGN_OR_RETURN(ranks.device, ChooseDevice(options.model));
  NIBBLE_ASSIGN_OR_RETURN(ranks.tokenizer, engine::Tokenizer::Load(options.model.model));
  NIBBLE_RETURN_IF_ERROR(LoadShares(options, &ranks));
  const int size = options.tensor_parallel_size;
  NIBBLE_ASSIGN_OR_RETURN(ranks.group, comm::MakeThreadGroup(size, all_reduce));
  const int threads = std::max(1, ranks.device.threads / size);
  for (int rank = 0; rank < size; ++rank) {
    std::vector<int> cpus;
    if (ranks.device.cpus.size() >= static_cast<size_t>(threads * size)) {
      const auto first = ranks.device.cpus.begin() + rank * threads;
      cpus.assign(first, first + threads);
    }
    ranks.pools.push_back(std::make_unique<ThreadPool>(threads, std::move(cpus)));
  }
  return ranks;
}

// The rule of the reference values: the beginning-of-sequence token, then the text without special
// tokens.
absl::StatusOr<std::vector<int32_t>> TextIds(const PerplexityOptions& options, const Ranks& ranks) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.data, kMaxTextBytes));
  absl::StatusOr<std::vector<int32_t>> encoded = ranks.tokenizer->Encode(text, false);
  if (!encoded.ok()) return Annotate(encoded.status(), options.data);
  std::vector<int32_t> ids;
  if (const std::optional<int32_t> bos = ranks.models[0]->config().bos_token_id) {
    ids.push_back(*bos);
  }
  ids.insert(ids.end(), encoded->begin(), encoded->end());
  if (options.limit > 0 && ids.size() > static_cast<size_t>(options.limit) + 1) {
    ids.resize(static_cast<size_t>(options.limit) + 1);
  }
  return ids;
}

absl::StatusOr<engine::PerplexityResult> Score(const PerplexityOptions& options, const Ranks& ranks,
                                               const std::vector<int32_t>& ids) {
  Progress progress("scoring", "tokens");
  engine::PerplexityOptions engine_options{.context = options.context, .stride = options.stride};
  engine_options.progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  std::vector<engine::PerplexityRank> places;
  for (size_t rank = 0; rank < ranks.models.size(); ++rank) {
    places.push_back({ranks.models[rank].get(), ranks.group[rank].get(), ranks.pools[rank].get()});
  }
  return engine::ComputePerplexity(places, ids, engine_options);
}

void Print(const PerplexityOptions& options, const Ranks& ranks,
           const engine::PerplexityResult& result, double seconds) {
  const engine::Model& model = *ranks.models[0];
  const bool is_group = options.tensor_parallel_size > 1;
  const std::string codec = comm::ToString(ranks.group[0]->policy().choices.back().codec);
  if (options.json) {
    nlohmann::ordered_json json = {{"model", options.model.model},
                                   {"data", options.data},
                                   {"quantization", model.quantization_name()},
                                   {"kv_cache_dtype", ToString(model.kv_dtype())},
                                   {"isa", ToString(ranks.device.isa)},
                                   {"tensor_parallel_size", options.tensor_parallel_size},
                                   {"context", options.context},
                                   {"stride", options.stride},
                                   {"tokens", result.num_tokens},
                                   {"scored", result.num_scored},
                                   {"mean_nll", result.mean_nll},
                                   {"perplexity", result.perplexity},
                                   {"seconds", seconds}};
    if (is_group) json["all_reduce"] = codec;
    fmt::print("{}\n", DumpJson(json));
    return;
  }
  fmt::print(
      "perplexity {:.4f}  (mean nll {:.6f}, {} of {} tokens scored, context {}, stride {}, {}, "
      "{}{:.1f} s)\n",
      result.perplexity, result.mean_nll, result.num_scored, result.num_tokens, options.context,
      options.stride, model.quantization_name(),
      is_group ? fmt::format("{} ranks, all-reduce {}, ", options.tensor_parallel_size, codec) : "",
      seconds);
}

absl::Status Perplexity(const PerplexityOptions& options) {
  NIBBLE_RETURN_IF_ERROR(Validate(options));
  NIBBLE_ASSIGN_OR_RETURN(const Ranks ranks, LoadRanks(options));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TextIds(options, ranks));
  const int64_t start_ns = Clock::Monotonic().NowNs();
  NIBBLE_ASSIGN_OR_RETURN(const engine::PerplexityResult result, Score(options, ranks, ids));
  Print(options, ranks, result, static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9);
  return absl::OkStatus();
}

}  // namespace

int RunPerplexity(const PerplexityOptions& options) {
  const absl::Status status = Perplexity(options);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace nibble::cli
