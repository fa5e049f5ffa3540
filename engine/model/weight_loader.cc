// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/weight_loader.h"

#include <string>
#include <utility>
#include <vector>

#include "engine/model/expert_loader.h"
#include "engine/model/linear_loader.h"
#include "engine/model/memory.h"
#include "engine/model/model_device.h"
#include "engine/model/shard.h"
#include "engine/model/tensor_convert.h"

namespace nibble::engine {
namespace {

// Beyond this share of the bytes that a decode step reads, a 16-bit head is worth 8 bits: at 1/8,
// halving it makes steps bound by memory 6 % faster.
constexpr double kHeadShare = 1.0 / 8;

const char kEmbedding[] = "model.embed_tokens";
const char kHead[] = "lm_head";

// Of linear layers, those that a step of one token reads; norms are next to nothing.
double StepLinearParameters(const ModelConfig& config) {
  const int64_t embeddings =
      config.vocab_size * config.hidden_size * (config.tie_word_embeddings ? 1 : 2);
  return static_cast<double>(config.num_active_parameters() - embeddings);
}

class DecoderLoader {
 public:
  DecoderLoader(const Checkpoint& checkpoint, const ModelConfig& config, const LoadOptions& options,
                ThreadPool* pool)
      : checkpoint_(checkpoint),
        config_(config),
        options_(options),
        dtype_(options.dtype.value_or(config.dtype)),
        pool_(pool),
        total_bytes_(BytesToRead(checkpoint, config, options)),
        cpu_packer_(options.isa),
        linears_(checkpoint, config, options,
                 options.device == nullptr ? cpu_packer_ : options.device->packer(), dtype_,
                 total_bytes_, pool),
        experts_(checkpoint, config, options, &linears_, pool) {}

  absl::StatusOr<DecoderWeights> Load();

 private:
  LinearModule Module(const std::string& name, bool bias = false) const;
  absl::StatusOr<EmbeddingTable> LoadEmbedding();
  absl::StatusOr<DecoderLayer> LoadLayer(int64_t layer_idx);
  absl::StatusOr<Linear> LoadHead();
  absl::Status ChooseHead();
  WeightForm ChooseHeadForm() const;
  bool TakesInt8() const;  // some linear layer does
  std::string QuantizationName() const;
  std::vector<std::string> Warnings() const;

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const LoadOptions& options_;
  const DType dtype_;
  ThreadPool* pool_;
  const int64_t total_bytes_;
  const kernels::CpuWeightPacker cpu_packer_;
  LinearLoader linears_;
  ExpertLoader experts_;
  // Of the head, on every stage: one that has none says what the last one has.
  WeightForm head_form_ = WeightForm::kDense;
  bool head_is_stored_ = false;  // in a quantized form
  std::string head_name_;        // "int8"
};

absl::StatusOr<DecoderWeights> DecoderLoader::Load() {
  if (dtype_ != DType::kF32 && dtype_ != DType::kBf16 && dtype_ != DType::kF16) {
    return Unimplemented("weights stored as {}: supported are float32, bfloat16 and float16",
                         ToString(dtype_));
  }
  // So that a model far too large is refused in words and not by the kernel's killing the process
  // half way.
  const int64_t least_bytes = LeastWeightBytes(config_, options_);
  constexpr const char* kWhat = "the model's weights";
  NIBBLE_RETURN_IF_ERROR(options_.device == nullptr
                             ? CheckMemory(least_bytes, kWhat)
                             : options_.device->CheckMemory(least_bytes, kWhat));
  DecoderWeights weights;
  weights.kv_dtype = dtype_;
  if (options_.place.is_first_stage()) {
    NIBBLE_ASSIGN_OR_RETURN(weights.embedding, LoadEmbedding());
  }
  const Range layers = LayersOf(config_, options_.place);
  weights.layers.reserve(static_cast<size_t>(layers.size()));
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    NIBBLE_ASSIGN_OR_RETURN(DecoderLayer layer, LoadLayer(l));
    weights.layers.push_back(std::move(layer));
  }
  NIBBLE_RETURN_IF_ERROR(ChooseHead());
  if (options_.place.is_last_stage()) {
    NIBBLE_ASSIGN_OR_RETURN(weights.final_norm,
                            linears_.LoadVector("model.norm.weight", config_.hidden_size));
    NIBBLE_ASSIGN_OR_RETURN(weights.lm_head, LoadHead());
  }
  weights.quantization_name = QuantizationName();
  weights.warnings = Warnings();
  if (options_.progress) options_.progress(total_bytes_, total_bytes_);
  return weights;
}

LinearModule DecoderLoader::Module(const std::string& name, bool bias) const {
  return {.name = name, .share = *ShareOf(config_, options_.place, name), .bias = bias};
}

absl::StatusOr<EmbeddingTable> DecoderLoader::LoadEmbedding() {
  const std::string name = std::string(kEmbedding) + ".weight";
  if (config_.quantization.has_value()) {
    NIBBLE_ASSIGN_OR_RETURN(const WeightScheme* scheme,
                            config_.quantization->Find(kEmbedding, "Embedding"));
    // A rule may match all names and mean the linear layers.
    const bool is_plain = config_.quantization->tensors_decide && checkpoint_.Find(name) != nullptr;
    if (scheme != nullptr && !is_plain) {
      return Unimplemented("{}: quantized embeddings are not supported ({}: {})", checkpoint_.dir(),
                           kEmbedding, Describe(*scheme));
    }
  }
  const MatrixShare share = Module(kEmbedding).share;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint_.Get(name, {share.n, share.k}));
  EmbeddingTable table;
  table.dtype = dtype_;
  table.ids = share.rows;
  table.rows = AlignedBuffer<uint8_t>(static_cast<size_t>(share.num_elements()) * SizeOf(dtype_));
  NIBBLE_RETURN_IF_ERROR(ConvertShare(*tensor, share, dtype_, table.rows.data(), pool_));
  linears_.Consumed(share.num_elements() * static_cast<int64_t>(SizeOf(tensor->dtype)));
  return table;
}

absl::StatusOr<DecoderLayer> DecoderLoader::LoadLayer(int64_t layer_idx) {
  const std::string prefix = fmt::format("model.layers.{}.", layer_idx);
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const int64_t hidden = config_.hidden_size;
  const bool qkv_bias = config_.qkv_bias;
  const bool mlp_bias = config_.mlp_bias;

  DecoderLayer layer;
  NIBBLE_ASSIGN_OR_RETURN(layer.input_norm,
                          linears_.LoadVector(prefix + "input_layernorm.weight", hidden));
  NIBBLE_ASSIGN_OR_RETURN(layer.qkv, linears_.Load({Module(attention + "q_proj", qkv_bias),
                                                    Module(attention + "k_proj", qkv_bias),
                                                    Module(attention + "v_proj", qkv_bias)}));
  if (config_.qk_norm) {
    NIBBLE_ASSIGN_OR_RETURN(layer.q_norm,
                            linears_.LoadVector(attention + "q_norm.weight", config_.head_dim));
    NIBBLE_ASSIGN_OR_RETURN(layer.k_norm,
                            linears_.LoadVector(attention + "k_norm.weight", config_.head_dim));
  }
  NIBBLE_ASSIGN_OR_RETURN(layer.o, linears_.Load({Module(attention + "o_proj", config_.o_bias)}));
  NIBBLE_ASSIGN_OR_RETURN(layer.post_attention_norm,
                          linears_.LoadVector(prefix + "post_attention_layernorm.weight", hidden));
  if (config_.HasExperts(layer_idx)) {
    NIBBLE_ASSIGN_OR_RETURN(layer.moe, experts_.Load(layer_idx));
    return layer;
  }
  NIBBLE_ASSIGN_OR_RETURN(layer.gate_up, linears_.Load({Module(mlp + "gate_proj", mlp_bias),
                                                        Module(mlp + "up_proj", mlp_bias)}));
  NIBBLE_ASSIGN_OR_RETURN(layer.down, linears_.Load({Module(mlp + "down_proj", mlp_bias)}));
  return layer;
}

bool DecoderLoader::TakesInt8() const {
  const LinearCounts& counts = linears_.counts();
  return counts.folded + counts.integer + counts.int8 > 0;
}

// By the whole model, so that all ranks choose what one would: a stage takes the others' layers to
// be stored as its own.
WeightForm DecoderLoader::ChooseHeadForm() const {
  switch (options_.head_quantization) {
    case HeadQuantization::kNone:
      return WeightForm::kDense;
    case HeadQuantization::kInt8:
      return WeightForm::kInt8;
    case HeadQuantization::kInt4:
      return WeightForm::kInt4;
    case HeadQuantization::kAuto:
      break;
  }
  if (!TakesInt8()) return WeightForm::kDense;
  const double head_bytes = static_cast<double>(config_.vocab_size) *
                            static_cast<double>(config_.hidden_size) *
                            static_cast<double>(SizeOf(dtype_));
  const RankPlace stage = {.stage = options_.place.stage, .num_stages = options_.place.num_stages};
  const double stages =
      StepLinearParameters(config_) / StepLinearParameters(RankConfig(config_, stage));
  const double step_bytes = head_bytes + linears_.counts().model_bytes * stages;
  return head_bytes > kHeadShare * step_bytes ? WeightForm::kInt8 : WeightForm::kDense;
}

absl::Status DecoderLoader::ChooseHead() {
  bool stored = false;
  for (const std::string_view suffix : {".weight_packed", ".qweight", ".weight_scale"}) {
    stored = stored || checkpoint_.Find(fmt::format("{}{}", kHead, suffix)) != nullptr;
  }
  if (stored && config_.tie_word_embeddings) {
    return Unimplemented("{}: {} is quantized, and config.json ties it to the embedding",
                         checkpoint_.dir(), kHead);
  }
  const WeightScheme* scheme = nullptr;
  if (!config_.tie_word_embeddings) {
    NIBBLE_ASSIGN_OR_RETURN(scheme, linears_.StoredScheme(kHead));
  }
  if (scheme != nullptr) {
    if (options_.head_quantization == HeadQuantization::kInt8 ||
        options_.head_quantization == HeadQuantization::kInt4) {
      return InvalidArgument(
          "--head-quantization int8 and int4 round a head of full precision; {} is stored in {} "
          "bits",
          kHead, scheme->weight_bits);
    }
    head_is_stored_ = true;
    head_name_ = fmt::format("int{}, as stored", scheme->weight_bits);
    return absl::OkStatus();
  }
  head_form_ = ChooseHeadForm();
  head_name_ = head_form_ == WeightForm::kInt8   ? "int8"
               : head_form_ == WeightForm::kInt4 ? "int4"
                                                 : std::string(ToString(dtype_));
  if (config_.tie_word_embeddings && head_form_ != WeightForm::kDense) {
    head_name_ += fmt::format(" beside the {} embedding", ToString(dtype_));
  }
  return absl::OkStatus();
}

absl::StatusOr<Linear> DecoderLoader::LoadHead() {
  const LinearModule module = Module(config_.tie_word_embeddings ? kEmbedding : kHead);
  return head_is_stored_ ? linears_.Load({module}) : linears_.LoadPlain(module, head_form_);
}

std::string DecoderLoader::QuantizationName() const {
  const LinearCounts& counts = linears_.counts();
  const std::string head = "head " + head_name_;
  std::string name;
  if (counts.int4_floats + counts.expanded > 0) {
    name = "w4a16";
    if (counts.expanded > 0) {
      name +=
          fmt::format(", {} of {} modules reordered and float32", counts.expanded, counts.total());
    }
  } else if (!TakesInt8()) {
    const std::string weights = fmt::format("none, weights {}", ToString(dtype_));
    return head_name_ == ToString(dtype_) ? weights : fmt::format("{}, {}", weights, head);
  }
  if (counts.folded + counts.integer > 0) {
    name = fmt::format("w4a8 ({})", counts.folded == 0    ? "integer"
                                    : counts.integer == 0 ? "folded"
                                                          : "folded and integer");
  }
  if (counts.int8 > 0) name += name.empty() ? "w8a8" : " and w8a8";
  if (counts.meant_for_floats > 0) name += " of a w4a16 checkpoint";
  if (counts.dense > 0) {
    name += fmt::format(", {} of {} modules {}", counts.dense, counts.total(), ToString(dtype_));
  }
  return fmt::format("{}, {}", name, head);
}

std::vector<std::string> DecoderLoader::Warnings() const {
  if (linears_.counts().meant_for_floats == 0 || options_.quantization != Quantization::kNone) {
    return {};
  }
  return {fmt::format(
      "{}: 4-bit weights ({}) that were made for 16-bit activations run with 8-bit activations "
      "(W4A8); --quantization w4a8 takes this as agreed, w4a16 keeps float activations",
      checkpoint_.dir(), config_.quantization->method)};
}

}  // namespace

absl::StatusOr<DecoderWeights> LoadDecoderWeights(const Checkpoint& checkpoint,
                                                  const ModelConfig& config,
                                                  const LoadOptions& options, ThreadPool* pool) {
  return DecoderLoader(checkpoint, config, options, pool).Load();
}

}  // namespace nibble::engine
