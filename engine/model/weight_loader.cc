// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/weight_loader.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/compressed_tensors.h"
#include "engine/model/memory.h"
#include "engine/model/tensor_convert.h"
#include "kernels/gemm/gemm.h"
#include "kernels/quant/int4_weight.h"
#include "kernels/quant/rtn.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using kernels::PackedWeight;
using kernels::ScaleForm;

// One of the checkpoint's modules that make up a linear layer.
struct Module {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t n = 0;
  bool bias = false;
};

// Puts the rows of `part` under those of `whole`.
void AppendRows(Int4Weight part, Int4Weight* whole) {
  if (whole->n == 0) {
    *whole = std::move(part);
    return;
  }
  const auto fill_zero_points = [](Int4Weight* weight) {
    weight->zero_points.resize(static_cast<size_t>(weight->n * weight->num_groups()), 8);
  };
  if (!part.zero_points.empty() || !whole->zero_points.empty()) {
    fill_zero_points(whole);
    fill_zero_points(&part);
  }
  whole->n += part.n;
  const auto append = [](auto& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  append(whole->codes, part.codes);
  append(whole->scales, part.scales);
  append(whole->zero_points, part.zero_points);
}

class DecoderLoader {
 public:
  DecoderLoader(const Checkpoint& checkpoint, const ModelConfig& config, const LoadOptions& options,
                ThreadPool* pool)
      : checkpoint_(checkpoint),
        config_(config),
        options_(options),
        dtype_(options.dtype.value_or(config.dtype)),
        pool_(pool) {}

  absl::StatusOr<DecoderWeights> Load();

 private:
  absl::Status CheckActivations() const;
  absl::Status CheckFits() const;
  absl::StatusOr<EmbeddingTable> LoadEmbedding();
  absl::StatusOr<DecoderLayer> LoadLayer(int64_t layer_idx);
  absl::StatusOr<Linear> LoadHead(const EmbeddingTable& embedding);
  absl::StatusOr<std::vector<float>> LoadVector(const std::string& name, int64_t size);
  // A layer made of `modules`, one under the other, all reading `k` inputs.
  absl::StatusOr<Linear> LoadLinear(const std::vector<Module>& modules, int64_t k);
  absl::StatusOr<std::unique_ptr<PackedWeight>> LoadDense(const std::vector<Module>& modules,
                                                          int64_t k);
  absl::StatusOr<Int4Weight> LoadInt4(const Module& module, int64_t k);
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4(const Int4Weight& weight);
  std::string QuantizationName() const;
  void Consumed(int64_t num_bytes);

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const LoadOptions& options_;
  const DType dtype_;
  ThreadPool* pool_;
  int64_t bytes_done_ = 0;
  int64_t num_dense_ = 0;  // linear layers of each kind
  int64_t num_folded_ = 0;
  int64_t num_integer_ = 0;
  int64_t num_dequantized_ = 0;
};

absl::StatusOr<DecoderWeights> DecoderLoader::Load() {
  if (dtype_ != DType::kF32 && dtype_ != DType::kBf16 && dtype_ != DType::kF16) {
    return Unimplemented("weights stored as {}: supported are float32, bfloat16 and float16",
                         ToString(dtype_));
  }
  NIBBLE_RETURN_IF_ERROR(CheckActivations());
  NIBBLE_RETURN_IF_ERROR(CheckFits());
  DecoderWeights weights;
  weights.kv_dtype = dtype_;
  NIBBLE_ASSIGN_OR_RETURN(weights.embedding, LoadEmbedding());
  weights.layers.reserve(static_cast<size_t>(config_.num_layers));
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    NIBBLE_ASSIGN_OR_RETURN(DecoderLayer layer, LoadLayer(l));
    weights.layers.push_back(std::move(layer));
  }
  NIBBLE_ASSIGN_OR_RETURN(weights.final_norm, LoadVector("model.norm.weight", config_.hidden_size));
  NIBBLE_ASSIGN_OR_RETURN(weights.lm_head, LoadHead(weights.embedding));
  weights.quantization_name = QuantizationName();
  if (options_.progress) options_.progress(checkpoint_.total_bytes(), checkpoint_.total_bytes());
  return weights;
}

// There is no fast path for 4-bit weights with 16-bit activations, and int8 activations give other
// logits than the checkpoint's author measured: not without being asked.
absl::Status DecoderLoader::CheckActivations() const {
  if (options_.quantization != Quantization::kNone || !config_.quantization.has_value() ||
      config_.quantization->activation_bits == 8) {
    return absl::OkStatus();
  }
  return Unimplemented(
      "{}: 4-bit weights with {}-bit activations: pass --quantization w4a8 to run them with int8 "
      "activations, or w4a16 to hold the weights as float32 (large and slow)",
      checkpoint_.dir(), config_.quantization->activation_bits);
}

// A lower bound, so that a model far too large is refused in words and not by the kernel's killing
// the process half way.
absl::Status DecoderLoader::CheckFits() const {
  const double vocab_params =
      2.0 * static_cast<double>(config_.vocab_size) * static_cast<double>(config_.hidden_size);
  const double tied_params = config_.tie_word_embeddings ? vocab_params / 2 : vocab_params;
  const double linear_params = static_cast<double>(config_.num_parameters()) - tied_params;
  const auto dense_bytes = static_cast<double>(SizeOf(dtype_));
  double linear_bytes = dense_bytes;
  if (options_.quantization == Quantization::kW4A16) {
    linear_bytes = 4.0;
  } else if (options_.quantization == Quantization::kW4A8 || config_.quantization.has_value()) {
    linear_bytes = 0.5;
  }
  return CheckMemory(
      static_cast<int64_t>(linear_params * linear_bytes + vocab_params * dense_bytes),
      "the model's weights");
}

void DecoderLoader::Consumed(int64_t num_bytes) {
  bytes_done_ = std::min(bytes_done_ + num_bytes, checkpoint_.total_bytes());
  if (options_.progress) options_.progress(bytes_done_, checkpoint_.total_bytes());
}

absl::StatusOr<EmbeddingTable> DecoderLoader::LoadEmbedding() {
  NIBBLE_ASSIGN_OR_RETURN(
      const TensorView* tensor,
      checkpoint_.Get("model.embed_tokens.weight", {config_.vocab_size, config_.hidden_size}));
  EmbeddingTable table;
  table.dtype = dtype_;
  table.rows = AlignedBuffer<uint8_t>(static_cast<size_t>(tensor->num_elements()) * SizeOf(dtype_));
  NIBBLE_RETURN_IF_ERROR(ConvertTensor(*tensor, dtype_, table.rows.data(), pool_));
  Consumed(static_cast<int64_t>(tensor->bytes.size()));
  return table;
}

absl::StatusOr<DecoderLayer> DecoderLoader::LoadLayer(int64_t layer_idx) {
  const std::string prefix = fmt::format("model.layers.{}.", layer_idx);
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const int64_t hidden = config_.hidden_size;
  const int64_t intermediate = config_.intermediate_size;
  const int64_t q_size = config_.num_heads * config_.head_dim;
  const int64_t kv_size = config_.num_kv_heads * config_.head_dim;

  DecoderLayer layer;
  NIBBLE_ASSIGN_OR_RETURN(layer.input_norm, LoadVector(prefix + "input_layernorm.weight", hidden));
  NIBBLE_ASSIGN_OR_RETURN(layer.qkv, LoadLinear({{attention + "q_proj", q_size, config_.qkv_bias},
                                                 {attention + "k_proj", kv_size, config_.qkv_bias},
                                                 {attention + "v_proj", kv_size, config_.qkv_bias}},
                                                hidden));
  if (config_.qk_norm) {
    NIBBLE_ASSIGN_OR_RETURN(layer.q_norm,
                            LoadVector(attention + "q_norm.weight", config_.head_dim));
    NIBBLE_ASSIGN_OR_RETURN(layer.k_norm,
                            LoadVector(attention + "k_norm.weight", config_.head_dim));
  }
  NIBBLE_ASSIGN_OR_RETURN(layer.o,
                          LoadLinear({{attention + "o_proj", hidden, config_.o_bias}}, q_size));
  NIBBLE_ASSIGN_OR_RETURN(layer.post_attention_norm,
                          LoadVector(prefix + "post_attention_layernorm.weight", hidden));
  NIBBLE_ASSIGN_OR_RETURN(layer.gate_up,
                          LoadLinear({{mlp + "gate_proj", intermediate, config_.mlp_bias},
                                      {mlp + "up_proj", intermediate, config_.mlp_bias}},
                                     hidden));
  NIBBLE_ASSIGN_OR_RETURN(
      layer.down, LoadLinear({{mlp + "down_proj", hidden, config_.mlp_bias}}, intermediate));
  return layer;
}

// The head stays in 16 bit (or the type asked for); tied, it is packed from the embedding's rows.
absl::StatusOr<Linear> DecoderLoader::LoadHead(const EmbeddingTable& embedding) {
  if (config_.tie_word_embeddings) {
    NIBBLE_ASSIGN_OR_RETURN(
        std::unique_ptr<PackedWeight> packed,
        kernels::PackDense(embedding.rows.data(), embedding.dtype, config_.vocab_size,
                           config_.hidden_size, dtype_, options_.isa, pool_));
    return Linear(std::move(packed), {});
  }
  NIBBLE_ASSIGN_OR_RETURN(
      std::unique_ptr<PackedWeight> packed,
      LoadDense({{.name = "lm_head", .n = config_.vocab_size}}, config_.hidden_size));
  return Linear(std::move(packed), {});
}

absl::StatusOr<std::vector<float>> DecoderLoader::LoadVector(const std::string& name,
                                                             int64_t size) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint_.Get(name, {size}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, TensorToFloats(*tensor, pool_));
  Consumed(static_cast<int64_t>(tensor->bytes.size()));
  return values;
}

absl::StatusOr<Linear> DecoderLoader::LoadLinear(const std::vector<Module>& modules, int64_t k) {
  const bool stored_int4 = IsPackedInt4(checkpoint_, modules.front().name);
  for (const Module& module : modules) {
    if (IsPackedInt4(checkpoint_, module.name) != stored_int4) {
      return Unimplemented("{} is quantized and {} is not: nibble fuses them and needs both alike",
                           stored_int4 ? modules.front().name : module.name,
                           stored_int4 ? module.name : modules.front().name);
    }
  }
  std::unique_ptr<PackedWeight> packed;
  if (!stored_int4 && options_.quantization == Quantization::kNone) {
    NIBBLE_ASSIGN_OR_RETURN(packed, LoadDense(modules, k));
    ++num_dense_;
  } else {
    Int4Weight weight;
    for (const Module& module : modules) {
      NIBBLE_ASSIGN_OR_RETURN(Int4Weight part, LoadInt4(module, k));
      if (weight.n != 0 && part.group_size != weight.group_size) {
        return Unimplemented(
            "{} has groups of {}, {} of {}: nibble fuses them and needs both alike",
            modules.front().name, weight.group_size, module.name, part.group_size);
      }
      AppendRows(std::move(part), &weight);
    }
    auto result = PackInt4(weight);
    if (!result.ok()) return Annotate(result.status(), modules.front().name);
    packed = std::move(result).value();
  }
  std::vector<float> bias;
  for (const Module& module : modules) {
    if (!module.bias) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> part,
                            LoadVector(module.name + ".bias", module.n));
    bias.insert(bias.end(), part.begin(), part.end());
  }
  return Linear(std::move(packed), std::move(bias));
}

absl::StatusOr<std::unique_ptr<PackedWeight>> DecoderLoader::LoadDense(
    const std::vector<Module>& modules, int64_t k) {
  int64_t n = 0;
  for (const Module& module : modules) n += module.n;
  const auto row_bytes = static_cast<size_t>(k) * SizeOf(dtype_);
  AlignedBuffer<uint8_t> rows(static_cast<size_t>(n) * row_bytes);
  uint8_t* next = rows.data();
  for (const Module& module : modules) {
    NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                            checkpoint_.Get(module.name + ".weight", {module.n, k}));
    NIBBLE_RETURN_IF_ERROR(ConvertTensor(*tensor, dtype_, next, pool_));
    next += static_cast<size_t>(module.n) * row_bytes;
    Consumed(static_cast<int64_t>(tensor->bytes.size()));
  }
  auto packed = kernels::PackDense(rows.data(), dtype_, n, k, dtype_, options_.isa, pool_);
  if (!packed.ok()) return Annotate(packed.status(), modules.front().name);
  return packed;
}

// The module's codes as stored, or rounded to nearest now.
absl::StatusOr<Int4Weight> DecoderLoader::LoadInt4(const Module& module, int64_t k) {
  if (IsPackedInt4(checkpoint_, module.name)) {
    if (!config_.quantization.has_value()) {
      return InvalidArgument("{}: {} is packed, but config.json has no quantization_config",
                             checkpoint_.dir(), module.name);
    }
    NIBBLE_ASSIGN_OR_RETURN(
        Int4Weight weight,
        ReadPackedInt4(checkpoint_, {.name = module.name,
                                     .n = module.n,
                                     .k = k,
                                     .group_size = config_.quantization->group_size}));
    Consumed(static_cast<int64_t>(weight.codes.size()));
    return weight;
  }
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                          checkpoint_.Get(module.name + ".weight", {module.n, k}));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, TensorToFloats(*tensor, pool_));
  auto weight = kernels::QuantizeRtn(values.data(), module.n, k, {}, pool_);
  if (!weight.ok()) return Annotate(weight.status(), module.name);
  Consumed(static_cast<int64_t>(tensor->bytes.size()));
  return weight;
}

absl::StatusOr<std::unique_ptr<PackedWeight>> DecoderLoader::PackInt4(const Int4Weight& weight) {
  if (options_.quantization == Quantization::kW4A16) {
    AlignedBuffer<float> values(static_cast<size_t>(weight.n * weight.k));
    pool_->ParallelFor(weight.n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t column = 0; column < weight.k; ++column) {
          values[static_cast<size_t>(row * weight.k + column)] = weight.Dequantize(row, column);
        }
      }
    });
    ++num_dequantized_;
    return kernels::PackDense(values.data(), DType::kF32, weight.n, weight.k, DType::kF32,
                              options_.isa, pool_);
  }
  // Folded is the faster form. What keeps the integer form from working too, that form reports.
  auto folded = kernels::PackInt4(weight, ScaleForm::kFolded, options_.isa, pool_);
  if (folded.ok()) {
    ++num_folded_;
    return folded;
  }
  ++num_integer_;
  return kernels::PackInt4(weight, ScaleForm::kInteger, options_.isa, pool_);
}

std::string DecoderLoader::QuantizationName() const {
  const std::string head = fmt::format("head {}", ToString(dtype_));
  if (num_dequantized_ > 0) {
    return fmt::format("w4a16 (measuring aid: 4-bit weights held as float32), {}", head);
  }
  if (num_folded_ + num_integer_ == 0) return fmt::format("none, weights {}", ToString(dtype_));
  std::string forms = num_folded_ == 0    ? "integer"
                      : num_integer_ == 0 ? "folded"
                                          : "folded and integer";
  if (num_dense_ > 0) {
    forms += fmt::format(", {} of {} linear layers {}", num_dense_,
                         num_dense_ + num_folded_ + num_integer_, ToString(dtype_));
  }
  return fmt::format("w4a8 ({}), {}", forms, head);
}

}  // namespace

absl::StatusOr<DecoderWeights> LoadDecoderWeights(const Checkpoint& checkpoint,
                                                  const ModelConfig& config,
                                                  const LoadOptions& options, ThreadPool* pool) {
  return DecoderLoader(checkpoint, config, options, pool).Load();
}

}  // namespace nibble::engine
