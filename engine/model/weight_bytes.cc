// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a rank reads and keeps, before it does.

#include <string>
#include <string_view>
#include <vector>

#include "engine/model/decoder.h"
#include "engine/model/expert_loader.h"
#include "engine/model/shard.h"
#include "engine/model/weight_loader.h"

namespace nibble::engine {
namespace {

double Part(int64_t part, int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(whole);
}

// Which part of a tensor a rank reads.
class ReadParts {
 public:
  ReadParts(const ModelConfig& config, const LoadOptions& options)
      : config_(config),
        place_(options.place),
        rounds_(options.quantization != Quantization::kNone && !config.quantization) {
    for (int64_t l = 0; config.moe.has_value() && l < config.num_layers; ++l) {
      std::vector<int64_t>& copies = copies_.emplace_back(config.moe->num_experts);
      const std::vector<int32_t> experts = ExpertsOfRank(config, options, l);
      num_slots_ = static_cast<int64_t>(experts.size());
      for (const int32_t expert : experts) {
        ++copies[static_cast<size_t>(expert)];
      }
    }
  }

  double Of(std::string_view tensor) const {
    if (!IsOnStage(config_, place_, tensor)) return 0.0;
    const std::string_view module = tensor.substr(0, tensor.rfind('.'));
    if (config_.moe.has_value() && module.ends_with(".experts")) {
      // One tensor of all experts: "...experts.down_proj".
      const auto share = ShareOf(config_, place_, std::string(module) + ".0.down_proj");
      const double slots = Part(num_slots_, config_.moe->num_experts);
      const bool whole_rows = rounds_ && tensor.ends_with("down_proj");
      return slots * (whole_rows ? 1.0 : Part(share->columns.size(), share->k));
    }
    const auto share = ShareOf(config_, place_, module);
    if (!share.has_value()) return 1.0;
    double part = Part(share->rows.size(), share->n);
    // What is rounded is read in whole rows.
    if (!rounds_) part *= Part(share->columns.size(), share->k);
    const auto layer = LayerOf(module);
    const auto expert = ExpertOf(module);
    if (layer.has_value() && expert.has_value() && config_.moe.has_value()) {
      part *= static_cast<double>(Copies(*layer, *expert));
    }
    return part;
  }

 private:
  // Of a layer on the rank's stage.
  int64_t Copies(int64_t layer, int64_t expert) const {
    const std::vector<int64_t>& copies = copies_[static_cast<size_t>(layer)];
    return expert < config_.moe->num_experts ? copies[static_cast<size_t>(expert)] : 0;
  }

  const ModelConfig& config_;
  const RankPlace& place_;
  const bool rounds_;
  int64_t num_slots_ = 0;                     // of this rank
  std::vector<std::vector<int64_t>> copies_;  // [num_layers, num_experts] in the rank's slots
};

}  // namespace

int64_t BytesToRead(const Checkpoint& checkpoint, const ModelConfig& config,
                    const LoadOptions& options) {
  const ReadParts parts(config, options);
  double bytes = 0.0;
  for (const TensorView& tensor : checkpoint.tensors()) {
    bytes += static_cast<double>(tensor.bytes.size()) * parts.Of(tensor.name);
  }
  return static_cast<int64_t>(bytes);
}

int64_t LeastWeightBytes(const ModelConfig& config, const LoadOptions& options) {
  const RankPlace& place = options.place;
  const auto hidden = static_cast<double>(config.hidden_size);
  const double all_vocab_params = static_cast<double>(config.vocab_size) * hidden;
  const double vocab_params = static_cast<double>(VocabularyOf(config, place).size()) * hidden;
  ModelConfig own = RankConfig(config, place);
  if (own.moe.has_value()) {
    own.moe->num_experts = static_cast<int64_t>(ExpertsOfRank(config, options, 0).size());
  }
  const double linear_params = static_cast<double>(own.num_parameters()) -
                               all_vocab_params * (config.tie_word_embeddings ? 1 : 2);
  const auto dense_bytes = static_cast<double>(SizeOf(options.dtype.value_or(config.dtype)));
  const int stored_bits =
      config.quantization.has_value() ? config.quantization->min_weight_bits() : 0;
  double linear_bytes = stored_bits == 0 ? dense_bytes : stored_bits / 8.0;
  if (options.quantization == Quantization::kW4A8 || options.quantization == Quantization::kW4A16) {
    linear_bytes = 0.5;
  }
  if (options.quantization == Quantization::kW8A8) linear_bytes = 1.0;
  const double head_bytes =
      options.head_quantization == HeadQuantization::kNone && stored_bits == 0 ? dense_bytes : 0.5;
  const double embedding = place.is_first_stage() ? vocab_params * dense_bytes : 0.0;
  const double head = place.is_last_stage() ? vocab_params * head_bytes : 0.0;
  return static_cast<int64_t>(linear_params * linear_bytes + embedding + head);
}

int64_t DecoderWeights::step_bytes(const ModelConfig& config, const RankPlace& place) const {
  int64_t bytes = size_bytes() - static_cast<int64_t>(embedding.rows.size());
  for (const DecoderLayer& layer : layers) {
    if (!layer.moe.has_value()) continue;
    const int64_t all_slots = layer.moe->gate_up.num_slots() * place.expert_size;
    const int64_t experts = layer.moe->gate_up.size_bytes() + layer.moe->down.size_bytes();
    bytes -= experts - experts * config.moe->num_experts_per_tok / all_slots;
  }
  return bytes;
}

}  // namespace nibble::engine
