// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as config.json and generation_config.json: an error or values that fit together.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/model/model_config.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = nibble::engine::ParseModelConfig(text, "config.json");
  if (config.ok()) {
    Check(config->num_heads > 0 && config->num_kv_heads > 0);
    Check(config->num_heads % config->num_kv_heads == 0);
    Check(config->head_dim >= 2 && config->head_dim % 2 == 0);
    Check(static_cast<int64_t>(config->sliding_window.size()) == config->num_layers);
    Check(config->num_parameters() > 0);
    Check(config->num_active_parameters() > 0);
    Check(config->num_active_parameters() <= config->num_parameters());
    if (config->moe) {
      const nibble::engine::MoeConfig& moe = *config->moe;
      Check(moe.num_experts >= 2 && moe.num_experts <= 1024 && moe.intermediate_size > 0);
      Check(moe.num_experts_per_tok >= 1 && moe.num_experts_per_tok <= moe.num_experts);
      Check(moe.shared_expert_intermediate_size >= 0);
      Check(static_cast<int64_t>(moe.is_moe_layer.size()) == config->num_layers);
    }
    Check(std::isfinite(config->rms_norm_eps) && std::isfinite(config->rope.theta));
    Check(config->rope.factor > 0 && config->rope.rotary_dim == config->head_dim);
    for (const int32_t id : config->eos_token_ids) Check(id >= 0 && id < config->vocab_size);
    if (config->quantization) {
      const nibble::engine::WeightScheme* scheme = config->quantization->main_scheme();
      Check(scheme != nullptr);
      Check(scheme->group_size == 0 || scheme->group_size >= 8);
      Check(scheme->weight_bits == 4 || scheme->weight_bits == 8);
      for (const char* module : {"model.layers.0.self_attn.q_proj", "lm_head"}) {
        const auto found = config->quantization->Find(module);
        if (found.ok() && *found != nullptr) Check((*found)->group_size >= 0);
      }
    }
  }
  const auto generation = nibble::engine::ParseGenerationConfig(text, "generation_config.json");
  if (generation.ok() && generation->temperature) Check(*generation->temperature >= 0.0F);
  return 0;
}
