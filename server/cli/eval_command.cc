// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble eval perplexity
#include <string>
#include <vector>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "base/clock.h"
#include "engine/exec/perplexity.h"
#include "server/cli/all_reduce_setup.h"
#include "server/cli/commands.h"
#include "server/cli/model_setup.h"
#include "server/cli/progress.h"
#include "server/cli/thread_ranks.h"

namespace nibble::cli {
namespace {

constexpr int kMaxRanks = 64;  // of comm::MakeThreadGroup
constexpr int kMaxStages = 64;

void ValidateRanks(const PerplexityOptions& options, std::vector<std::string>* violations) {
  const server::AllReduceFlags& flags = options.all_reduce;
  flags.Validate(violations);
  if (options.tensor_parallel_size < 1 || options.tensor_parallel_size > kMaxRanks) {
    violations->push_back(fmt::format("--tensor-parallel-size is {}, want 1 to {}",
                                      options.tensor_parallel_size, kMaxRanks));
  }
  if (options.pipeline_parallel_size < 1 || options.pipeline_parallel_size > kMaxStages) {
    violations->push_back(fmt::format("--pipeline-parallel-size is {}, want 1 to {}",
                                      options.pipeline_parallel_size, kMaxStages));
  }
  options.experts.Validate(options.tensor_parallel_size, violations);
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

absl::StatusOr<engine::PerplexityResult> Score(const PerplexityOptions& options,
                                               const ThreadRanks& ranks,
                                               const std::vector<int32_t>& ids) {
  Progress progress("scoring", "tokens");
  engine::PerplexityOptions engine_options{.context = options.context, .stride = options.stride};
  engine_options.progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  return engine::ComputePerplexity(ranks.Places(), ids, engine_options);
}

void Print(const PerplexityOptions& options, const ThreadRanks& ranks,
           const engine::PerplexityResult& result, double seconds) {
  const engine::Model& model = *ranks.models.back();
  const bool is_group = options.tensor_parallel_size > 1;
  const int num_ranks = static_cast<int>(ranks.models.size());
  const std::string codec = comm::ToString(ranks.group[0]->policy().choices.back().codec);
  if (options.json) {
    nlohmann::ordered_json json = {{"model", options.model.model},
                                   {"data", options.data},
                                   {"quantization", model.quantization_name()},
                                   {"kv_cache_dtype", ToString(model.kv_dtype())},
                                   {"isa", ToString(ranks.device.isa)},
                                   {"tensor_parallel_size", options.tensor_parallel_size},
                                   {"pipeline_parallel_size", options.pipeline_parallel_size},
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
      num_ranks == 1 ? ""
                     : fmt::format("{} ranks, {}", num_ranks,
                                   is_group ? fmt::format("all-reduce {}, ", codec) : ""),
      seconds);
}

absl::Status Perplexity(const PerplexityOptions& options) {
  NIBBLE_RETURN_IF_ERROR(Validate(options));
  NIBBLE_ASSIGN_OR_RETURN(const comm::AllReduceOptions all_reduce,
                          ToAllReduceOptions(options.all_reduce));
  NIBBLE_ASSIGN_OR_RETURN(const ThreadRanks ranks,
                          LoadThreadRanks(options.model,
                                          {.tensor_parallel_size = options.tensor_parallel_size,
                                           .pipeline_parallel_size = options.pipeline_parallel_size,
                                           .experts = options.experts},
                                          all_reduce));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                          ReadTextIds(options.data, options.limit, ranks));
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
