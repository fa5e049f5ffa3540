// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/evaluation.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/mapped_file.h"
#include "engine/exec/perplexity.h"
#include "engine/model/model.h"

namespace nibble::quantize {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;
constexpr int64_t kContext = 512;

struct Measured {
  engine::PerplexityResult result;
  std::string quantization;
};

absl::StatusOr<Measured> Measure(const std::string& dir, const engine::LoadOptions& load,
                                 const std::vector<int32_t>& ids,
                                 const engine::PerplexityOptions& options, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Model> model,
                          engine::Model::Load(dir, load, pool));
  Measured measured;
  measured.quantization = model->quantization_name();
  NIBBLE_ASSIGN_OR_RETURN(measured.result,
                          engine::ComputePerplexity(model.get(), ids, options, pool));
  return measured;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> EvaluationTokens(const std::string& path,
                                                      const engine::Tokenizer& tokenizer,
                                                      const engine::ModelConfig& config) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTextBytes));
  absl::StatusOr<std::vector<int32_t>> encoded = tokenizer.Encode(text, false);
  if (!encoded.ok()) return Annotate(encoded.status(), path);
  std::vector<int32_t> ids;
  if (config.bos_token_id) ids.push_back(*config.bos_token_id);
  ids.insert(ids.end(), encoded->begin(), encoded->end());
  if (ids.size() < 2) {
    return InvalidArgument("{}: {} tokens are too few for a perplexity, it takes 2", path,
                           ids.size());
  }
  return ids;
}

absl::StatusOr<EvaluationReport> Evaluate(const EvaluationArgs& args,
                                          const std::function<void(int64_t, int64_t)>& progress,
                                          ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const engine::ModelConfig config, engine::LoadModelConfig(args.source));
  engine::PerplexityOptions options = {.context =
                                           std::min(kContext, config.max_position_embeddings)};
  options.stride = (options.context + 1) / 2;
  int64_t models_done = 0;
  if (progress) {
    options.progress = [&](int64_t done, int64_t total) {
      progress(models_done * total + done, 2 * total);
    };
  }
  engine::LoadOptions load = {.isa = args.isa};
  NIBBLE_ASSIGN_OR_RETURN(const Measured source,
                          Measure(args.source, load, args.ids, options, pool));
  models_done = 1;
  if (args.scheme == Scheme::kW4A16) load.quantization = engine::Quantization::kW4A16;
  NIBBLE_ASSIGN_OR_RETURN(const Measured output,
                          Measure(args.output, load, args.ids, options, pool));
  return EvaluationReport{.data = args.data,
                          .context = options.context,
                          .stride = options.stride,
                          .num_scored = output.result.num_scored,
                          .source_perplexity = source.result.perplexity,
                          .perplexity = output.result.perplexity,
                          .quantization = output.quantization};
}

}  // namespace nibble::quantize
