// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/random_model.h"

#include <new>
#include <string>
#include <utility>
#include <vector>

#include "fmt/ranges.h"

#include "bench/random_weight.h"
#include "engine/model/decoder.h"
#include "engine/model/memory.h"
#include "engine/model/model_device.h"
#include "engine/model/weight_loader.h"
#include "engine/moe/expert_layout.h"

namespace nibble::bench {
namespace {

using engine::HeadQuantization;
using engine::Linear;
using engine::ModelConfig;
using engine::Quantization;
using kernels::GemmDesc;
using kernels::WeightFormat;

constexpr std::string_view kPrefix = "random:";

struct NamedShape {
  std::string_view name;
  int64_t hidden_size;
  int64_t intermediate_size;
  int64_t num_layers;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t vocab_size;
  int64_t max_positions;
  double rope_theta;
  bool tied;  // head and embedding are one
  int64_t num_experts = 0;
  int64_t num_experts_per_tok = 0;
};
constexpr NamedShape kShapes[] = {
    {"llama-3.2-1b", 2048, 8192, 16, 32, 8, 64, 128256, 131072, 5e5, true},
    {"llama-3.2-3b", 3072, 8192, 28, 24, 8, 128, 128256, 131072, 5e5, true},
    {"llama-3-8b", 4096, 14336, 32, 32, 8, 128, 128256, 8192, 5e5, false},
    {"llama-3-70b", 8192, 28672, 80, 64, 8, 128, 128256, 8192, 5e5, false},
    {"mixtral-8x7b", 4096, 14336, 32, 32, 8, 128, 32000, 32768, 1e6, false, 8, 2},
    {"tiny", 128, 192, 2, 4, 2, 32, 512, 256, 1e4, false},
    {"tiny-mixtral", 128, 192, 2, 4, 2, 32, 512, 256, 1e4, false, 4, 2},
};

ModelConfig ConfigOf(const NamedShape& shape) {
  ModelConfig config;
  config.hidden_size = shape.hidden_size;
  config.intermediate_size = shape.intermediate_size;
  config.num_layers = shape.num_layers;
  config.num_heads = shape.num_heads;
  config.num_kv_heads = shape.num_kv_heads;
  config.head_dim = shape.head_dim;
  config.vocab_size = shape.vocab_size;
  config.max_position_embeddings = shape.max_positions;
  config.rope.rotary_dim = shape.head_dim;
  config.rope.theta = shape.rope_theta;
  config.tie_word_embeddings = shape.tied;
  config.model_type = "llama";
  const auto num_layers = static_cast<size_t>(shape.num_layers);
  config.sliding_window.assign(num_layers, 0);
  if (shape.num_experts == 0) return config;
  config.architecture = engine::Architecture::kMixtral;
  config.model_type = "mixtral";
  config.moe.emplace();
  config.moe->num_experts = shape.num_experts;
  config.moe->num_experts_per_tok = shape.num_experts_per_tok;
  config.moe->intermediate_size = shape.intermediate_size;
  config.moe->is_moe_layer.assign(num_layers, true);
  return config;
}

// As loading a checkpoint would quantize it.
GemmDesc DescOf(Quantization quantization, DType storage) {
  switch (quantization) {
    case Quantization::kNone:
      break;
    case Quantization::kW4A8:
      return {.format = WeightFormat::kW4A8};
    case Quantization::kW8A8:
      return {.format = WeightFormat::kW8A8};
    case Quantization::kW4A16:
      return {.format = WeightFormat::kW4A16};
  }
  return {.storage = storage};
}

std::string NameOf(const GemmDesc& desc) {
  switch (desc.format) {
    case WeightFormat::kW4A8:
      return "w4a8 (folded)";
    case WeightFormat::kW8A8:
      return "w8a8";
    case WeightFormat::kW4A16:
      return "w4a16";
    case WeightFormat::kDense:
      break;
  }
  return std::string(ToString(desc.storage));
}

// Makes one matrix at a time on the host, packed for every layer that has it.
class RandomDecoder {
 public:
  RandomDecoder(const ModelConfig& config, const engine::LoadOptions& load,
                const kernels::WeightPacker& packer, ThreadPool* pool)
      : config_(config),
        load_(load),
        storage_(load.dtype.value_or(config.dtype)),
        packer_(packer),
        pool_(pool) {}

  absl::StatusOr<engine::DecoderWeights> Make() {
    engine::DecoderWeights weights;
    MakeEmbedding(&weights.embedding);
    weights.layers.resize(static_cast<size_t>(config_.num_layers));
    NIBBLE_RETURN_IF_ERROR(MakeAttention(&weights.layers));
    NIBBLE_RETURN_IF_ERROR(config_.moe.has_value() ? MakeExperts(&weights.layers)
                                                   : MakeDense(&weights.layers));
    weights.final_norm = Ones();
    const GemmDesc head = HeadDesc(weights.step_bytes(config_, load_.place));
    NIBBLE_ASSIGN_OR_RETURN(weights.lm_head,
                            PackOne(Matrix(head, config_.vocab_size, config_.hidden_size, 7)));
    weights.kv_dtype = load_.kv_cache_dtype.value_or(storage_);
    weights.quantization_name = fmt::format(
        "random, {}, head {}", NameOf(DescOf(load_.quantization, storage_)), NameOf(head));
    return weights;
  }

 private:
  std::vector<float> Ones() const {
    return std::vector<float>(static_cast<size_t>(config_.hidden_size), 1.0F);
  }
  int64_t EmbeddingBytes() const {
    return config_.vocab_size * config_.hidden_size * static_cast<int64_t>(sizeof(uint16_t));
  }

  static RandomWeight Matrix(GemmDesc desc, int64_t n, int64_t k, uint32_t seed) {
    desc.n = n;
    desc.k = k;
    return RandomWeight(desc, seed);
  }
  // Of the linear layers.
  RandomWeight Matrix(int64_t n, int64_t k, uint32_t seed) const {
    return Matrix(DescOf(load_.quantization, storage_), n, k, seed);
  }
  absl::StatusOr<Linear> PackOne(const RandomWeight& matrix) const {
    std::vector<Linear::Part> parts(1);
    NIBBLE_ASSIGN_OR_RETURN(parts[0].weight, matrix.Pack(packer_, pool_));
    return Linear(std::move(parts), {});
  }
  absl::Status PackEach(const RandomWeight& matrix, Linear engine::DecoderLayer::*member,
                        std::vector<engine::DecoderLayer>* layers) const {
    for (engine::DecoderLayer& layer : *layers) {
      NIBBLE_ASSIGN_OR_RETURN(layer.*member, PackOne(matrix));
    }
    return absl::OkStatus();
  }

  void MakeEmbedding(engine::EmbeddingTable* table) const {
    table->dtype = DType::kBf16;
    table->ids = {0, config_.vocab_size};
    table->rows = AlignedBuffer<uint8_t>(static_cast<size_t>(EmbeddingBytes()));
    FillRandomBf16(
        {reinterpret_cast<uint16_t*>(table->rows.data()), table->rows.size() / sizeof(uint16_t)},
        1);
  }

  absl::Status MakeAttention(std::vector<engine::DecoderLayer>* layers) const {
    const int64_t hidden = config_.hidden_size;
    const int64_t q = config_.num_heads * config_.head_dim;
    const int64_t kv = config_.num_kv_heads * config_.head_dim;
    for (engine::DecoderLayer& layer : *layers) {
      layer.input_norm = Ones();
      layer.post_attention_norm = Ones();
    }
    NIBBLE_RETURN_IF_ERROR(
        PackEach(Matrix(q + 2 * kv, hidden, 2), &engine::DecoderLayer::qkv, layers));
    return PackEach(Matrix(hidden, q, 3), &engine::DecoderLayer::o, layers);
  }

  absl::Status MakeDense(std::vector<engine::DecoderLayer>* layers) const {
    const int64_t hidden = config_.hidden_size;
    const int64_t intermediate = config_.intermediate_size;
    NIBBLE_RETURN_IF_ERROR(
        PackEach(Matrix(2 * intermediate, hidden, 4), &engine::DecoderLayer::gate_up, layers));
    return PackEach(Matrix(hidden, intermediate, 5), &engine::DecoderLayer::down, layers);
  }

  absl::StatusOr<engine::GroupedLinear> PackSlots(const RandomWeight& matrix) const {
    std::vector<Linear> slots(static_cast<size_t>(config_.moe->num_experts));
    for (Linear& slot : slots) {
      NIBBLE_ASSIGN_OR_RETURN(slot, PackOne(matrix));
    }
    return engine::GroupedLinear(std::move(slots));
  }

  absl::Status MakeExperts(std::vector<engine::DecoderLayer>* layers) const {
    const int64_t hidden = config_.hidden_size;
    const int64_t intermediate = config_.moe->intermediate_size;
    for (engine::DecoderLayer& layer : *layers) layer.moe.emplace();
    {
      const RandomWeight gate_up = Matrix(2 * intermediate, hidden, 4);
      for (engine::DecoderLayer& layer : *layers) {
        NIBBLE_ASSIGN_OR_RETURN(layer.moe->gate_up, PackSlots(gate_up));
      }
    }
    const RandomWeight down = Matrix(hidden, intermediate, 5);
    uint32_t router_seed = 100;
    for (engine::DecoderLayer& layer : *layers) {
      NIBBLE_ASSIGN_OR_RETURN(layer.moe->down, PackSlots(down));
      NIBBLE_ASSIGN_OR_RETURN(layer.moe->router,
                              PackOne(Matrix({.storage = DType::kF32}, config_.moe->num_experts,
                                             hidden, router_seed++)));
    }
    return absl::OkStatus();
  }

  // kAuto is the loader's rule: 8 bits where layers take int8 and a head of storage_ would be more
  // than an eighth of what a step reads.
  GemmDesc HeadDesc(int64_t linear_bytes) const {
    switch (load_.head_quantization) {
      case HeadQuantization::kNone:
        return DescOf(Quantization::kNone, storage_);
      case HeadQuantization::kInt8:
        return DescOf(Quantization::kW8A8, storage_);
      case HeadQuantization::kInt4:
        return DescOf(Quantization::kW4A8, storage_);
      case HeadQuantization::kAuto:
        break;
    }
    const bool takes_int8 =
        load_.quantization == Quantization::kW4A8 || load_.quantization == Quantization::kW8A8;
    const int64_t head_bytes =
        config_.vocab_size * config_.hidden_size * static_cast<int64_t>(SizeOf(storage_));
    const bool narrow = takes_int8 && 8 * head_bytes > head_bytes + linear_bytes;
    return DescOf(narrow ? Quantization::kW8A8 : Quantization::kNone, storage_);
  }

  const ModelConfig& config_;
  const engine::LoadOptions& load_;
  const DType storage_;
  const kernels::WeightPacker& packer_;
  ThreadPool* const pool_;
};

}  // namespace

std::optional<std::string_view> RandomShapeOf(std::string_view model) {
  if (!model.starts_with(kPrefix)) return std::nullopt;
  return model.substr(kPrefix.size());
}

absl::StatusOr<ModelConfig> RandomModelConfig(std::string_view shape) {
  std::vector<std::string_view> names;
  for (const NamedShape& named : kShapes) {
    if (named.name == shape) return ConfigOf(named);
    names.push_back(named.name);
  }
  return InvalidArgument("{}{}: no such shape, want one of {}", kPrefix, shape,
                         fmt::join(names, ", "));
}

absl::StatusOr<std::unique_ptr<engine::Model>> MakeRandomModel(const ModelConfig& config,
                                                               engine::LoadOptions load,
                                                               ThreadPool* pool) {
  if (config.moe.has_value()) {
    load.expert_layout = std::make_shared<const engine::ExpertLayout>(
        engine::ExpertLayout::Uniform(config.num_layers, config.moe->num_experts));
  }
  if (load.device != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(load, load.device->Adapt(config, load));
  }
  const int64_t least_bytes = engine::LeastWeightBytes(config, load);
  constexpr const char* kWhat = "a random model";
  NIBBLE_RETURN_IF_ERROR(load.device == nullptr ? engine::CheckMemory(least_bytes, kWhat)
                                                : load.device->CheckMemory(least_bytes, kWhat));
  const kernels::CpuWeightPacker cpu(load.isa);
  const kernels::WeightPacker& packer = load.device == nullptr ? cpu : load.device->packer();
  try {
    NIBBLE_ASSIGN_OR_RETURN(engine::DecoderWeights weights,
                            RandomDecoder(config, load, packer, pool).Make());
    if (load.device != nullptr) return load.device->MakeModel(config, std::move(weights), load);
    return std::make_unique<engine::DecoderModel>(config, std::move(weights), load);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("memory ran out while random weights were made");
  }
}

}  // namespace nibble::bench
