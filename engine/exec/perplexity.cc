// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/perplexity.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <new>
#include <numeric>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"

namespace nibble::engine {
namespace {

constexpr int64_t kBlockSize = 16;
// Tokens of a step: enough for the GEMMs, few enough that workspaces stay small.
constexpr int64_t kMaxChunkTokens = 256;
constexpr int64_t kMaxLogitsBytes = int64_t{64} << 20;

// Ids [begin, end) of the text, of which [first_scored, end) are predicted.
struct Window {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t first_scored = 0;
};

std::vector<Window> CutWindows(int64_t num_ids, int64_t context, int64_t stride) {
  std::vector<Window> windows;
  int64_t scored_end = 0;
  for (int64_t begin = 0;; begin += stride) {
    const int64_t end = std::min(begin + context, num_ids);
    // A window's first id has nothing to be predicted from.
    windows.push_back(
        {.begin = begin, .end = end, .first_scored = std::max(scored_end, begin + 1)});
    scored_end = end;
    if (end == num_ids) return windows;
  }
}

// -log softmax(logits)[target], in double.
double NegativeLogLikelihood(const float* logits, int64_t vocab_size, int32_t target) {
  const float max = *std::max_element(logits, logits + vocab_size);
  double sum = 0.0;
  for (int64_t i = 0; i < vocab_size; ++i) sum += std::exp(static_cast<double>(logits[i] - max));
  return std::log(sum) + static_cast<double>(max) - static_cast<double>(logits[target]);
}

class Evaluation {
 public:
  Evaluation(Model* model, std::span<const int32_t> ids, std::unique_ptr<KvCache> cache,
             ThreadPool* pool)
      : model_(model), ids_(ids), cache_(std::move(cache)), pool_(pool) {
    const int64_t row_bytes = model->config().vocab_size * static_cast<int64_t>(sizeof(float));
    chunk_tokens_ = std::clamp<int64_t>(kMaxLogitsBytes / row_bytes, 16, kMaxChunkTokens);
    if (model->has_logits()) {
      logits_ =
          AlignedBuffer<float>(static_cast<size_t>(chunk_tokens_ * model->config().vocab_size));
    }
    plan_.max_blocks_per_seq = static_cast<int32_t>(cache_->num_blocks());
    plan_.block_tables.resize(static_cast<size_t>(cache_->num_blocks()));
    std::iota(plan_.block_tables.begin(), plan_.block_tables.end(), 0);
  }

  int64_t chunk_tokens() const { return chunk_tokens_; }
  double total_nll() const { return total_nll_; }
  int64_t num_scored() const { return num_scored_; }

  // Computes ids [begin, end) of `window`, whose ids before `begin` are in the cache.
  absl::Status RunChunk(const Window& window, int64_t begin, int64_t end) {
    FillPlan(window, begin, end);
    NIBBLE_RETURN_IF_ERROR(model_->Forward(plan_, cache_.get(), logits_.data(), pool_));
    if (!model_->has_logits()) return absl::OkStatus();
    const int64_t vocab_size = model_->config().vocab_size;
    nll_.resize(plan_.logits_indices.size());
    pool_->ParallelFor(plan_.num_samples(), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t target = begin + plan_.logits_indices[static_cast<size_t>(i)] + 1;
        nll_[static_cast<size_t>(i)] = NegativeLogLikelihood(
            logits_.data() + i * vocab_size, vocab_size, ids_[static_cast<size_t>(target)]);
      }
    });
    total_nll_ = std::accumulate(nll_.begin(), nll_.end(), total_nll_);
    num_scored_ += plan_.num_samples();
    return absl::OkStatus();
  }

 private:
  void FillPlan(const Window& window, int64_t begin, int64_t end) {
    plan_.token_ids.assign(ids_.begin() + begin, ids_.begin() + end);
    plan_.positions.resize(plan_.token_ids.size());
    std::iota(plan_.positions.begin(), plan_.positions.end(),
              static_cast<int32_t>(begin - window.begin));
    plan_.slot_mapping = plan_.positions;  // block i of the cache is block i of the window
    plan_.query_start = {0, static_cast<int32_t>(end - begin)};
    plan_.context_lens = {static_cast<int32_t>(end - window.begin)};
    // The logits of id j predict id j + 1.
    plan_.logits_indices.clear();
    const int64_t last_predicting = std::min(end, window.end - 1);
    for (int64_t j = std::max(begin, window.first_scored - 1); j < last_predicting; ++j) {
      plan_.logits_indices.push_back(static_cast<int32_t>(j - begin));
    }
  }

  Model* model_;
  std::span<const int32_t> ids_;
  std::unique_ptr<KvCache> cache_;
  ThreadPool* pool_;
  int64_t chunk_tokens_ = 0;
  StepPlan plan_;
  AlignedBuffer<float> logits_;  // [chunk_tokens, vocab_size], where there are logits
  std::vector<double> nll_;      // of the chunk's scored ids
  double total_nll_ = 0.0;
  int64_t num_scored_ = 0;
};

// The error that came first. The others, who wait for the rank that failed, are told to stop.
class RankFailure {
 public:
  explicit RankFailure(std::span<const PerplexityRank> ranks) : ranks_(ranks) {}

  void Report(const absl::Status& status) {
    {
      const std::lock_guard lock(mutex_);
      if (!status_.ok()) return;
      status_ = status;
    }
    for (const PerplexityRank& rank : ranks_) {
      const std::string reason(status.message());
      if (rank.communicator != nullptr) rank.communicator->Abort(reason);
      if (rank.link != nullptr) rank.link->Abort(reason);
    }
  }
  absl::Status status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  const std::span<const PerplexityRank> ranks_;
  mutable std::mutex mutex_;
  absl::Status status_;  // guarded by mutex_
};

absl::Status CheckOptions(const ModelConfig& config, std::span<const int32_t> ids,
                          const PerplexityOptions& options) {
  if (ids.size() < 2) {
    return InvalidArgument("perplexity needs at least 2 token ids, there are {}", ids.size());
  }
  if (options.context < 2 || options.context > config.max_position_embeddings) {
    return InvalidArgument("context is {}, the limits are 2 and {} (the model's positions)",
                           options.context, config.max_position_embeddings);
  }
  if (options.stride < 1 || options.stride > options.context) {
    return InvalidArgument("stride is {}, the limits are 1 and {} (the context)", options.stride,
                           options.context);
  }
  return absl::OkStatus();
}

absl::StatusOr<PerplexityResult> Compute(Model* model, std::span<const int32_t> ids,
                                         const PerplexityOptions& options, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckOptions(model->config(), ids, options));
  NIBBLE_ASSIGN_OR_RETURN(
      auto cache, model->MakeKvCache((options.context + kBlockSize - 1) / kBlockSize, kBlockSize));
  const auto num_ids = static_cast<int64_t>(ids.size());
  for (int64_t i = 0; i < num_ids; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    if (id < 0 || id >= model->config().vocab_size) {
      return InvalidArgument("ids[{}] is {}, the limits are 0 and {}", i, id,
                             model->config().vocab_size - 1);
    }
  }
  const std::vector<Window> windows = CutWindows(num_ids, options.context, options.stride);
  int64_t num_to_score = 0;
  for (const Window& window : windows) num_to_score += window.end - window.first_scored;
  Evaluation evaluation(model, ids, std::move(cache), pool);
  for (const Window& window : windows) {
    for (int64_t begin = window.begin; begin < window.end; begin += evaluation.chunk_tokens()) {
      const int64_t end = std::min(begin + evaluation.chunk_tokens(), window.end);
      NIBBLE_RETURN_IF_ERROR(evaluation.RunChunk(window, begin, end));
      if (options.progress) options.progress(evaluation.num_scored(), num_to_score);
    }
  }
  if (!model->has_logits()) return PerplexityResult{.num_tokens = num_ids};
  const double mean_nll = evaluation.total_nll() / static_cast<double>(evaluation.num_scored());
  return PerplexityResult{.num_tokens = num_ids,
                          .num_scored = evaluation.num_scored(),
                          .mean_nll = mean_nll,
                          .perplexity = std::exp(mean_nll)};
}

}  // namespace

absl::StatusOr<PerplexityResult> ComputePerplexity(Model* model, std::span<const int32_t> ids,
                                                   const PerplexityOptions& options,
                                                   ThreadPool* pool) {
  try {
    return Compute(model, ids, options, pool);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("memory ran out while computing the perplexity of {} ids", ids.size());
  }
}

absl::StatusOr<PerplexityResult> ComputePerplexity(std::span<const PerplexityRank> ranks,
                                                   std::span<const int32_t> ids,
                                                   const PerplexityOptions& options) {
  const auto has_logits = [](const PerplexityRank& rank) { return rank.model->has_logits(); };
  const auto scoring = std::find_if(ranks.begin(), ranks.end(), has_logits);
  if (const auto count = std::count_if(ranks.begin(), ranks.end(), has_logits); count != 1) {
    return InvalidArgument("perplexity needs one rank that has logits, {} of {} have", count,
                           ranks.size());
  }
  RankFailure failure(ranks);
  const auto run = [&](const PerplexityRank& rank, const PerplexityOptions& own_options) {
    rank.model->SetCommunicator(rank.communicator);
    rank.model->SetStageLink(rank.link);
    auto result = ComputePerplexity(rank.model, ids, own_options, rank.pool);
    if (!result.ok()) failure.Report(result.status());
    return result;
  };
  std::vector<std::thread> threads;
  for (const PerplexityRank& rank : ranks) {
    if (&rank == &*scoring) continue;
    try {
      threads.emplace_back([&run, &options, &rank] {
        (void)run(rank, {.context = options.context, .stride = options.stride});
      });
    } catch (const std::system_error& error) {
      failure.Report(
          ResourceExhausted("no thread for each of {} ranks: {}", ranks.size(), error.what()));
      break;
    }
  }
  auto result = run(*scoring, options);
  for (std::thread& thread : threads) thread.join();
  const absl::Status first = failure.status();
  if (!first.ok()) return first;
  return result;
}

}  // namespace nibble::engine
