// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Calibration on text that the model itself writes.
#include <algorithm>
#include <limits>
#include <new>
#include <optional>

#include "base/aligned_buffer.h"
#include "base/utf8.h"
#include "engine/sampling/sampler.h"
#include "engine/scheduler/step_plan.h"
#include "quantize/calibration.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kBlockSize = 16;
constexpr int64_t kMaxCacheBytes = int64_t{1} << 30;  // of the sequences written at a time
constexpr int64_t kMaxBatch = 128;
constexpr int kMinGreedy = 3;
constexpr int kMaxGreedy = 5;

// Words by the look of their token: letters (whatever is not ASCII counts as one), perhaps a space
// in front.
bool IsWord(std::string_view bytes) {
  if (bytes.starts_with(' ')) bytes.remove_prefix(1);
  if (bytes.empty() || !IsValidUtf8(bytes)) return false;
  return std::all_of(bytes.begin(), bytes.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || static_cast<unsigned char>(c) >= 128;
  });
}

// Vocabularies list tokens about as they were found to be frequent: the first half of the words.
std::vector<int32_t> CommonTokens(const engine::Tokenizer& tokenizer, int64_t vocab_size) {
  std::vector<int32_t> words;
  const int64_t num_ids = std::min(tokenizer.vocab_size(), vocab_size);
  for (int32_t id = 0; id < num_ids; ++id) {
    if (!tokenizer.IsSpecial(id) && IsWord(tokenizer.TokenBytes(id))) words.push_back(id);
  }
  words.resize((words.size() + 1) / 2);
  return words;
}

class Generator {
 public:
  Generator(const CalibrationOptions& options, int64_t length, const engine::Tokenizer& tokenizer,
            engine::Model* model, ThreadPool* pool)
      : seed_(options.seed),
        length_(length),
        model_(model),
        config_(model->config()),
        num_ids_(std::min(tokenizer.vocab_size(), config_.vocab_size)),
        common_(CommonTokens(tokenizer, config_.vocab_size)),
        pool_(pool) {}

  bool has_common_tokens() const { return !common_.empty(); }

  // Sequences [first, first + count), appended to `ids`.
  absl::Status Write(int64_t first, int64_t count, engine::KvCache* cache,
                     const std::function<void(int64_t)>& progress, std::vector<int32_t>* ids) {
    sequences_.assign(static_cast<size_t>(count), {});
    for (int64_t i = 0; i < count; ++i) {
      Sequence& sequence = sequences_[static_cast<size_t>(i)];
      sequence.seed = seed_ * 0x9e3779b97f4a7c15U + static_cast<uint64_t>(first + i);
      StartDocument(&sequence);
    }
    AlignedBuffer<float> logits(static_cast<size_t>(count * config_.vocab_size));
    for (int64_t position = 0; position + 1 < length_; ++position) {
      const engine::StepPlan plan = PlanStep(position);
      NIBBLE_RETURN_IF_ERROR(model_->Forward(plan, cache, logits.data(), pool_));
      NIBBLE_RETURN_IF_ERROR(Advance(plan, position, logits.data()));
      if (progress) progress((position + 2) * count);
    }
    for (const Sequence& sequence : sequences_) {
      ids->insert(ids->end(), sequence.ids.begin(), sequence.ids.begin() + length_);
    }
    return absl::OkStatus();
  }

 private:
  struct Sequence {
    uint64_t seed = 0;
    std::vector<int32_t> ids;  // known so far; may run ahead of the step
    int64_t num_documents = 0;
    int64_t greedy_until = 0;  // ids before this index are the most likely ones
  };

  // A number that no sampled token's draw uses: those count with the token's index.
  float Draw(const Sequence& sequence, uint64_t purpose) const {
    return engine::UniformFromCounter(~sequence.seed,
                                      static_cast<uint64_t>(sequence.num_documents) * 2 + purpose);
  }

  void StartDocument(Sequence* sequence) {
    if (config_.bos_token_id) sequence->ids.push_back(*config_.bos_token_id);
    if (!config_.bos_token_id ||
        sequence->num_documents % 2 == static_cast<int64_t>(sequence->seed % 2)) {
      const auto size = static_cast<float>(common_.size());
      const auto idx = static_cast<size_t>(Draw(*sequence, 0) * size);
      sequence->ids.push_back(common_[std::min(idx, common_.size() - 1)]);
    }
    constexpr int kChoices = kMaxGreedy - kMinGreedy + 1;
    const int choice = static_cast<int>(Draw(*sequence, 1) * kChoices);
    sequence->greedy_until =
        static_cast<int64_t>(sequence->ids.size()) + kMinGreedy + std::min(choice, kChoices - 1);
    ++sequence->num_documents;
  }

  // Token `position` of every sequence goes in, its successor comes out.
  engine::StepPlan PlanStep(int64_t position) const {
    engine::StepPlan plan;
    const int64_t blocks_per_seq = (length_ + kBlockSize - 1) / kBlockSize;
    plan.max_blocks_per_seq = static_cast<int32_t>(blocks_per_seq);
    plan.query_start.push_back(0);
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const Sequence& sequence = sequences_[s];
      const int64_t first_block = static_cast<int64_t>(s) * blocks_per_seq;
      plan.token_ids.push_back(sequence.ids[static_cast<size_t>(position)]);
      plan.positions.push_back(static_cast<int32_t>(position));
      plan.slot_mapping.push_back(static_cast<int32_t>(first_block * kBlockSize + position));
      plan.query_start.push_back(static_cast<int32_t>(s + 1));
      plan.context_lens.push_back(static_cast<int32_t>(position + 1));
      for (int64_t block = 0; block < blocks_per_seq; ++block) {
        plan.block_tables.push_back(static_cast<int32_t>(first_block + block));
      }
      const bool known = static_cast<int64_t>(sequence.ids.size()) > position + 1;
      if (known) continue;
      plan.logits_indices.push_back(static_cast<int32_t>(s));
      plan.sampling.push_back({.temperature = position + 1 < sequence.greedy_until ? 0.0F : 1.0F,
                               .seed = sequence.seed,
                               .output_index = position + 1});
    }
    return plan;
  }

  absl::Status Advance(const engine::StepPlan& plan, int64_t position, float* logits) {
    const auto num_samples = static_cast<size_t>(plan.num_samples());
    for (size_t i = 0; i < num_samples; ++i) {  // a vocabulary may be padded
      float* const row = logits + static_cast<int64_t>(i) * config_.vocab_size;
      std::fill(row + num_ids_, row + config_.vocab_size, -std::numeric_limits<float>::infinity());
    }
    const engine::StepOutput output =
        engine::SampleRows(logits, config_.vocab_size, plan.sampling, pool_);
    for (size_t i = 0; i < num_samples; ++i) {
      if (output.tokens[i].no_finite_logit) {
        return absl::FailedPreconditionError(fmt::format(
            "the model's logits are not finite after {} tokens of its own text: it cannot be "
            "calibrated",
            position + 1));
      }
      Sequence& sequence = sequences_[static_cast<size_t>(plan.logits_indices[i])];
      const int32_t id = output.tokens[i].token_id;
      sequence.ids.push_back(id);
      const auto& ends = config_.eos_token_ids;
      if (std::find(ends.begin(), ends.end(), id) != ends.end()) StartDocument(&sequence);
    }
    return absl::OkStatus();
  }

  const uint64_t seed_;
  const int64_t length_;
  engine::Model* model_;
  const engine::ModelConfig& config_;
  const int64_t num_ids_;
  const std::vector<int32_t> common_;
  ThreadPool* pool_;
  std::vector<Sequence> sequences_;
};

absl::StatusOr<CalibrationTokens> Generate(const CalibrationOptions& options,
                                           const engine::Tokenizer& tokenizer, engine::Model* model,
                                           const std::function<void(int64_t, int64_t)>& progress,
                                           ThreadPool* pool) {
  const engine::ModelConfig& config = model->config();
  CalibrationTokens tokens = {.num_samples = options.num_samples,
                              .length = CalibrationLength(options, config)};
  Generator generator(options, tokens.length, tokenizer, model, pool);
  if (!generator.has_common_tokens()) {
    return absl::FailedPreconditionError(
        "the tokenizer has no tokens that look like words to begin a text with; calibrate on a "
        "text file");
  }
  const int64_t blocks = (tokens.length + kBlockSize - 1) / kBlockSize;
  const int64_t bytes = engine::KvCache::BlockBytes(config, kBlockSize, model->kv_dtype()) * blocks;
  const int64_t batch =
      std::clamp<int64_t>(kMaxCacheBytes / bytes, 1, std::min(kMaxBatch, tokens.num_samples));
  NIBBLE_ASSIGN_OR_RETURN(const auto cache, model->MakeKvCache(batch * blocks, kBlockSize));
  for (int64_t first = 0; first < tokens.num_samples; first += batch) {
    const int64_t count = std::min(batch, tokens.num_samples - first);
    const auto on_step = [&](int64_t done) {
      if (progress) progress(first * tokens.length + done, tokens.num_samples * tokens.length);
    };
    NIBBLE_RETURN_IF_ERROR(generator.Write(first, count, cache.get(), on_step, &tokens.ids));
  }
  return tokens;
}

}  // namespace

absl::StatusOr<CalibrationTokens> GenerateTokens(
    const CalibrationOptions& options, const engine::Tokenizer& tokenizer, engine::Model* model,
    const std::function<void(int64_t, int64_t)>& progress, ThreadPool* pool) {
  try {
    return Generate(options, tokenizer, model, progress, pool);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("memory ran out while the model wrote {} samples of {} tokens",
                             options.num_samples, options.length);
  }
}

}  // namespace nibble::quantize
