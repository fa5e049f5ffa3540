// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/model_config.h"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/config_reader.h"
#include "engine/model/model_config_parts.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxFileBytes = size_t{4} << 20;

// Well above any model that exists; products of a few of them fit into 63 bits.
constexpr int64_t kMaxHidden = 1 << 17;
constexpr int64_t kMaxIntermediate = 1 << 20;
constexpr int64_t kMaxLayers = 1 << 10;
constexpr int64_t kMaxHeads = 1 << 10;
constexpr int64_t kMaxHeadDim = 1 << 10;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxPositions = 1 << 24;
constexpr size_t kMaxStopIds = 1024;

struct ArchitectureInfo {
  Architecture architecture;
  std::string_view class_name;  // as in `architectures`
  std::string_view model_type;
  // What transformers' config classes take for an absent key. null is not absent: it says that
  // there is no window, and as many key-value heads as heads.
  int64_t default_max_positions;
  int64_t default_kv_heads;  // 0: as many as heads
  int64_t default_window;    // 0: none
  double default_rms_norm_eps;
  double default_rope_theta;
};
constexpr ArchitectureInfo kArchitectures[] = {
    {Architecture::kLlama, "LlamaForCausalLM", "llama", 2048, 0, 0, 1e-6, 1e4},
    {Architecture::kMistral, "MistralForCausalLM", "mistral", 131072, 8, 4096, 1e-6, 1e4},
    {Architecture::kQwen2, "Qwen2ForCausalLM", "qwen2", 32768, 32, 4096, 1e-6, 1e4},
    {Architecture::kQwen3, "Qwen3ForCausalLM", "qwen3", 32768, 32, 4096, 1e-6, 1e4},
    {Architecture::kMixtral, "MixtralForCausalLM", "mixtral", 131072, 8, 0, 1e-5, 1e6},
    {Architecture::kQwen2Moe, "Qwen2MoeForCausalLM", "qwen2_moe", 32768, 16, 4096, 1e-6, 1e4},
    {Architecture::kQwen3Moe, "Qwen3MoeForCausalLM", "qwen3_moe", 32768, 4, 4096, 1e-6, 1e4},
};

std::string SupportedNames() {
  std::string names;
  for (const ArchitectureInfo& info : kArchitectures) {
    if (!names.empty()) names += ", ";
    names += info.class_name;
  }
  return names;
}

// From `architectures` or, where that is absent, from `model_type`; they must not disagree.
const ArchitectureInfo& ParseArchitecture(ConfigReader* reader) {
  const std::vector<std::string> classes = reader->Strings("architectures", 16);
  const std::string model_type = reader->String("model_type", "");
  const ArchitectureInfo& fallback = kArchitectures[0];
  if (!reader->ok()) return fallback;
  if (classes.empty() && model_type.empty()) {
    reader->Fail(InvalidArgument("{}: architectures and model_type are missing", reader->where()));
    return fallback;
  }
  for (const ArchitectureInfo& info : kArchitectures) {
    if (classes.empty() ? info.model_type != model_type : info.class_name != classes[0]) continue;
    if (!model_type.empty() && info.model_type != model_type) {
      reader->Fail(InvalidArgument("{}: architecture {} with model_type {}", reader->where(),
                                   Quote(classes[0]), Quote(model_type)));
    }
    return info;
  }
  reader->Fail(Unimplemented("{}: architecture {} is not supported (supported: {})",
                             reader->where(), Quote(classes.empty() ? model_type : classes[0]),
                             SupportedNames()));
  return fallback;
}

void ParseShape(const ArchitectureInfo& info, ConfigReader* reader, ModelConfig* config) {
  config->hidden_size = reader->Int("hidden_size", 1, kMaxHidden);
  config->intermediate_size = reader->Int("intermediate_size", 1, kMaxIntermediate);
  config->num_layers = reader->Int("num_hidden_layers", 1, kMaxLayers);
  config->num_heads = reader->Int("num_attention_heads", 1, kMaxHeads);
  const bool is_default = info.default_kv_heads > 0 && !reader->Contains("num_key_value_heads");
  config->num_kv_heads = reader->Int("num_key_value_heads", 1, kMaxHeads,
                                     is_default ? info.default_kv_heads : config->num_heads);
  config->vocab_size = reader->Int("vocab_size", 1, kMaxVocab);
  if (!reader->ok()) return;
  if (config->num_heads % config->num_kv_heads != 0) {
    reader->Fail(
        InvalidArgument("{}: num_attention_heads {} is not a multiple of num_key_value_heads {}{}",
                        reader->where(), config->num_heads, config->num_kv_heads,
                        is_default ? " (the default of an absent key)" : ""));
    return;
  }
  if (reader->Has("head_dim")) {
    config->head_dim = reader->Int("head_dim", 2, kMaxHeadDim);
  } else if (config->architecture == Architecture::kQwen3) {
    config->head_dim = 128;  // the class default, whatever the hidden size
  } else if (config->hidden_size % config->num_heads != 0) {
    reader->Fail(InvalidArgument(
        "{}: head_dim is missing and hidden_size {} is not a multiple of num_attention_heads {}",
        reader->where(), config->hidden_size, config->num_heads));
    return;
  } else {
    config->head_dim = config->hidden_size / config->num_heads;
  }
  if (config->head_dim % 2 != 0 || config->head_dim > kMaxHeadDim) {
    reader->Fail(InvalidArgument("{}: head_dim is {}, must be even and at most {}", reader->where(),
                                 config->head_dim, kMaxHeadDim));
  }
}

// A value that would change the result of an architecture that does not have it.
void RefuseFor(ConfigReader* reader, const char* key, std::string_view model_type) {
  const nlohmann::json* value = reader->Find(key);
  if (value == nullptr || *value == false) return;
  reader->Fail(Unimplemented("{}: {} {} of a {} model is not supported", reader->where(), key,
                             Quote(*value), model_type));
}

void ParseBiases(ConfigReader* reader, ModelConfig* config) {
  switch (config->architecture) {
    case Architecture::kLlama:
    case Architecture::kQwen3:
    case Architecture::kQwen3Moe:
      config->qkv_bias = config->o_bias = reader->Bool("attention_bias", false);
      break;
    case Architecture::kMistral:
    case Architecture::kMixtral:
      RefuseFor(reader, "attention_bias", config->model_type);
      break;
    case Architecture::kQwen2:
      config->qkv_bias = true;
      break;
    case Architecture::kQwen2Moe:
      config->qkv_bias = reader->Bool("qkv_bias", true);
      break;
  }
  if (config->architecture == Architecture::kLlama) {
    config->mlp_bias = reader->Bool("mlp_bias", false);
  } else {
    RefuseFor(reader, "mlp_bias", config->model_type);
  }
  config->qk_norm = config->architecture == Architecture::kQwen3 ||
                    config->architecture == Architecture::kQwen3Moe;
}

// Which layers the window holds for, as transformers' configs decide it.
void ParseSlidingWindow(const ArchitectureInfo& info, ConfigReader* reader, ModelConfig* config) {
  config->sliding_window.assign(static_cast<size_t>(config->num_layers), 0);
  if (config->architecture == Architecture::kLlama) {
    RefuseFor(reader, "sliding_window", "llama");
    return;
  }
  const bool is_mistral = config->architecture == Architecture::kMistral ||
                          config->architecture == Architecture::kMixtral;
  const bool is_off = !is_mistral && !reader->Bool("use_sliding_window", false);
  // Transformers itself writes a window of 0 for a Qwen2-MoE without one.
  int64_t window = reader->Int("sliding_window", is_off ? 0 : 1, INT32_MAX, 0);
  if (!reader->Contains("sliding_window")) window = info.default_window;
  if (is_off) window = 0;

  const std::vector<std::string> types =
      reader->Strings("layer_types", static_cast<size_t>(kMaxLayers));
  if (!types.empty() && types.size() != config->sliding_window.size()) {
    reader->Fail(InvalidArgument("{}: layer_types has {} entries for {} layers", reader->where(),
                                 types.size(), config->num_layers));
    return;
  }
  const bool is_qwen_moe = config->architecture == Architecture::kQwen2Moe ||
                           config->architecture == Architecture::kQwen3Moe;
  if (is_qwen_moe && window > 0 && types.empty()) {
    reader->Fail(
        Unimplemented("{}: use_sliding_window of a {} model without layer_types is not supported: "
                      "versions of transformers differ in which layers slide",
                      reader->where(), info.model_type));
    return;
  }
  const int64_t first_sliding = is_mistral ? 0 : reader->Int("max_window_layers", 0, INT32_MAX, 28);
  for (size_t layer = 0; layer < config->sliding_window.size(); ++layer) {
    bool slides = window > 0 && static_cast<int64_t>(layer) >= first_sliding;
    if (!types.empty()) {
      slides = types[layer] == "sliding_attention";
      if (!slides && types[layer] != "full_attention") {
        reader->Fail(Unimplemented(
            "{}: layer_types {} is not supported (supported: full_attention, sliding_attention)",
            reader->where(), Quote(types[layer])));
        return;
      }
      if (slides && window == 0) {
        reader->Fail(InvalidArgument("{}: layer_types makes layer {} slide, sliding_window is off",
                                     reader->where(), layer));
        return;
      }
    }
    if (slides) config->sliding_window[layer] = window;
  }
}

DType ParseDType(ConfigReader* reader) {
  std::string name = reader->String("dtype", reader->String("torch_dtype", "float32"));
  if (name.starts_with("torch.")) name.erase(0, 6);
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    if (ToString(dtype) == name) return dtype;
  }
  reader->Fail(
      Unimplemented("{}: dtype {} is not supported (supported: float32, bfloat16, float16)",
                    reader->where(), Quote(name)));
  return DType::kF32;
}

void ParseActivation(ConfigReader* reader) {
  const std::string name = reader->String("hidden_act", "silu");
  if (name == "silu" || name == "swish") return;
  reader->Fail(Unimplemented("{}: hidden_act {} is not supported (supported: silu)",
                             reader->where(), Quote(name)));
}

}  // namespace

std::string_view ToString(Architecture architecture) {
  for (const ArchitectureInfo& info : kArchitectures) {
    if (info.architecture == architecture) return info.class_name;
  }
  return "unknown";
}

int64_t ModelConfig::num_parameters() const {
  return CountParameters(moe.has_value() ? moe->num_experts : 0);
}

int64_t ModelConfig::num_active_parameters() const {
  return CountParameters(moe.has_value() ? moe->num_experts_per_tok : 0);
}

int64_t ModelConfig::CountParameters(int64_t num_experts) const {
  const int64_t q_size = num_heads * head_dim;
  const int64_t kv_size = num_kv_heads * head_dim;
  int64_t layer = 2 * hidden_size;                                       // norms
  layer += hidden_size * (q_size + 2 * kv_size) + q_size * hidden_size;  // q, k, v, o
  if (qkv_bias) layer += q_size + 2 * kv_size;
  if (o_bias) layer += hidden_size;
  if (qk_norm) layer += 2 * head_dim;
  int64_t dense = 3 * hidden_size * intermediate_size;  // gate, up, down
  if (mlp_bias) dense += 2 * intermediate_size + hidden_size;
  int64_t all_layers = num_layers * layer;
  for (int64_t l = 0; l < num_layers; ++l) {
    all_layers += HasExperts(l) ? moe->CountParameters(hidden_size, num_experts) : dense;
  }
  const int64_t embeddings = vocab_size * hidden_size * (tie_word_embeddings ? 1 : 2);
  return all_layers + embeddings + hidden_size;
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json_text, std::string_view path) {
  absl::StatusOr<nlohmann::json> json = ParseJson(json_text, {.max_bytes = kMaxFileBytes});
  if (!json.ok()) return Annotate(json.status(), absl::string_view(path.data(), path.size()));
  if (!json->is_object()) {
    return InvalidArgument("{}: holds {}, must be an object", path, json->type_name());
  }
  ConfigReader reader(*json, path);
  ModelConfig config;
  const ArchitectureInfo& info = ParseArchitecture(&reader);
  if (!reader.ok()) return reader.status();
  config.architecture = info.architecture;
  config.model_type = info.model_type;

  ParseShape(info, &reader, &config);
  ParseActivation(&reader);
  config.max_position_embeddings =
      reader.Int("max_position_embeddings", 1, kMaxPositions, info.default_max_positions);
  config.rms_norm_eps =
      static_cast<float>(reader.Double("rms_norm_eps", 0.0, 1.0, info.default_rms_norm_eps));
  config.tie_word_embeddings = reader.Bool("tie_word_embeddings", false);
  ParseBiases(&reader, &config);
  if (!reader.ok()) return reader.status();  // what follows sizes by the number of layers
  ParseSlidingWindow(info, &reader, &config);
  config.rope = ParseRope(&reader, info.default_rope_theta, config.head_dim);
  config.moe = ParseMoe(&reader, config);
  RefuseFor(&reader, "use_mrope", info.model_type);
  RefuseFor(&reader, "dual_chunk_attention_config", info.model_type);
  config.dtype = ParseDType(&reader);
  config.eos_token_ids = reader.Ids("eos_token_id", config.vocab_size - 1, kMaxStopIds);
  const std::vector<int32_t> bos = reader.Ids("bos_token_id", config.vocab_size - 1, 1);
  if (!bos.empty()) config.bos_token_id = bos[0];
  config.quantization = ParseQuantization(&reader);
  if (!reader.ok()) return reader.status();
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  const std::string path = dir + "/config.json";
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  return ParseModelConfig(text, path);
}

}  // namespace nibble::engine
