// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble eval perplexity
#include <cstdio>
#include <optional>
#include <vector>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "base/clock.h"
#include "base/mapped_file.h"
#include "engine/exec/perplexity.h"
#include "server/cli/commands.h"
#include "server/cli/model_setup.h"
#include "server/cli/progress.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;

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
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

// The rule of the reference values: the beginning-of-sequence token, then the text without special
// tokens.
absl::StatusOr<std::vector<int32_t>> TextIds(const PerplexityOptions& options,
                                             const LoadedModel& loaded) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.data, kMaxTextBytes));
  absl::StatusOr<std::vector<int32_t>> encoded = loaded.tokenizer->Encode(text, false);
  if (!encoded.ok()) return Annotate(encoded.status(), options.data);
  std::vector<int32_t> ids;
  if (const std::optional<int32_t> bos = loaded.model->config().bos_token_id) ids.push_back(*bos);
  ids.insert(ids.end(), encoded->begin(), encoded->end());
  if (options.limit > 0 && ids.size() > static_cast<size_t>(options.limit) + 1) {
    ids.resize(static_cast<size_t>(options.limit) + 1);
  }
  return ids;
}

absl::Status Perplexity(const PerplexityOptions& options) {
  NIBBLE_RETURN_IF_ERROR(Validate(options));
  NIBBLE_ASSIGN_OR_RETURN(const LoadedModel loaded, LoadModel(options.model));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TextIds(options, loaded));
  const int64_t start_ns = Clock::Monotonic().NowNs();
  engine::PerplexityResult result;
  {
    Progress progress("scoring", "tokens");
    engine::PerplexityOptions engine_options{.context = options.context, .stride = options.stride};
    engine_options.progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
    NIBBLE_ASSIGN_OR_RETURN(result, engine::ComputePerplexity(loaded.model.get(), ids,
                                                              engine_options, loaded.pool.get()));
  }
  const double seconds = static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
  if (options.json) {
    const nlohmann::ordered_json json = {{"model", options.model.model},
                                         {"data", options.data},
                                         {"quantization", loaded.model->quantization_name()},
                                         {"kv_cache_dtype", ToString(loaded.model->kv_dtype())},
                                         {"isa", ToString(loaded.device.isa)},
                                         {"context", options.context},
                                         {"stride", options.stride},
                                         {"tokens", result.num_tokens},
                                         {"scored", result.num_scored},
                                         {"mean_nll", result.mean_nll},
                                         {"perplexity", result.perplexity},
                                         {"seconds", seconds}};
    fmt::print("{}\n", DumpJson(json));
  } else {
    fmt::print(
        "perplexity {:.4f}  (mean nll {:.6f}, {} of {} tokens scored, context {}, stride {}, {}, "
        "{:.1f} s)\n",
        result.perplexity, result.mean_nll, result.num_scored, result.num_tokens, options.context,
        options.stride, loaded.model->quantization_name(), seconds);
  }
  return absl::OkStatus();
}

}  // namespace

int RunPerplexity(const PerplexityOptions& options) {
  const absl::Status status = Perplexity(options);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace nibble::cli
