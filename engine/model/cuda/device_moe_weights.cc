// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The weights of layers with experts, and which slots an expert is in.

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "engine/model/cuda/device_memory.h"
#include "engine/model/cuda/device_moe.h"

namespace nibble::engine {
namespace {

using kernels::cuda::DeviceWeight;
using kernels::cuda::GroupedWeights;

constexpr int64_t kRouterAlignment = 4;  // a row of logits is a whole number of 16 bytes

// One matrix of all slots. The kernels take weights of one description.
absl::StatusOr<GroupedWeights> Group(const GroupedLinear& linear, int64_t layer, const char* name,
                                     DeviceForms* forms) {
  std::vector<const DeviceWeight*> weights;
  for (const Linear& slot : linear.slots()) {
    const auto parts = slot.parts();
    if (parts.size() > 1 || slot.reorders()) {
      return Unimplemented(
          "layer {}: the experts' {} {}: the CUDA engine takes experts of one form, in order",
          layer, name,
          slot.reorders() ? "reorder their input channels" : "has parts of several forms");
    }
    weights.push_back(dynamic_cast<const DeviceWeight*>(parts.front().weight.get()));
    NIBBLE_CHECK(weights.back() != nullptr);
    if (weights.back()->variant_name() != weights.front()->variant_name()) {
      return Unimplemented(
          "layer {}: the experts' {} are {} and {}: the CUDA engine takes experts of one form",
          layer, name, weights.front()->variant_name(), weights.back()->variant_name());
    }
  }
  const kernels::GemmDesc& desc = weights.front()->desc();
  if (kernels::TakesInt8(desc.format)) {
    forms->int8 = true;
  } else {
    forms->floats = desc.storage;
  }
  return GroupedWeights::Create(weights);
}

DeviceForms Union(const DeviceForms& a, const DeviceForms& b) {
  return {.int8 = a.int8 || b.int8, .floats = a.floats.has_value() ? a.floats : b.floats};
}

}  // namespace

DeviceForms DeviceMoeWeights::input_forms() const {
  return has_shared_expert ? Union(gate_up_forms, shared_gate_up.forms()) : gate_up_forms;
}

DeviceMoe::DeviceMoe(const ModelConfig& config, const RankPlace& place, const ExpertLayout& layout,
                     int64_t first_layer, DType activation)
    : hidden_(config.hidden_size),
      num_experts_(config.moe->num_experts),
      top_k_(config.moe->num_experts_per_tok),
      renormalize_(config.moe->norm_topk_prob),
      num_slots_(SlotsOf(layout.num_slots, place).size()),
      first_slot_(SlotsOf(layout.num_slots, place).begin),
      first_layer_(first_layer),
      model_layers_(config.num_layers),
      activation_(activation) {}

absl::StatusOr<std::unique_ptr<DeviceMoe>> DeviceMoe::Create(
    const ModelConfig& config, const RankPlace& place, const ExpertLayout& layout,
    const std::vector<const MoeWeights*>& layers, int64_t first_layer, DType activation,
    cudaStream_t stream) {
  if (config.moe->num_experts % kRouterAlignment != 0) {
    return Unimplemented("{} experts: the CUDA engine takes a multiple of {}",
                         config.moe->num_experts, kRouterAlignment);
  }
  std::unique_ptr<DeviceMoe> moe(new DeviceMoe(config, place, layout, first_layer, activation));
  for (const MoeWeights* weights : layers) {
    const int64_t layer = first_layer + static_cast<int64_t>(moe->layers_.size());
    moe->layers_.emplace_back();
    if (weights != nullptr) NIBBLE_RETURN_IF_ERROR(moe->AddLayer(*weights, layout, layer, stream));
  }
  moe->counts_.resize(layers.size() * static_cast<size_t>(moe->num_experts_));
  NIBBLE_ASSIGN_OR_RETURN(moe->counters_, gpu::Upload(moe->counts_, stream));
  NIBBLE_RETURN_IF_ERROR(Retake(moe->num_slots_ + 1, &moe->offsets_));
  NIBBLE_ASSIGN_OR_RETURN(moe->load_stream_, gpu::Stream::Create());
  return moe;
}

absl::Status DeviceMoe::AddLayer(const MoeWeights& weights, const ExpertLayout& layout,
                                 int64_t layer, cudaStream_t stream) {
  DeviceMoeWeights device;
  const auto name = [layer](const char* part) { return fmt::format("layer {}: {}", layer, part); };
  NIBBLE_ASSIGN_OR_RETURN(device.router,
                          DeviceLinear::Create(weights.router, name("the router"), stream));
  NIBBLE_ASSIGN_OR_RETURN(device.gate_up,
                          Group(weights.gate_up, layer, "gate and up", &device.gate_up_forms));
  NIBBLE_ASSIGN_OR_RETURN(device.down, Group(weights.down, layer, "down", &device.down_forms));
  device.has_shared_expert = weights.has_shared_expert();
  if (device.has_shared_expert) {
    NIBBLE_ASSIGN_OR_RETURN(device.shared_gate_up,
                            DeviceLinear::Create(weights.shared_gate_up,
                                                 name("the shared expert's gate and up"), stream));
    NIBBLE_ASSIGN_OR_RETURN(
        device.shared_down,
        DeviceLinear::Create(weights.shared_down, name("the shared expert's down"), stream));
    NIBBLE_ASSIGN_OR_RETURN(device.shared_gate, gpu::Upload(weights.shared_gate, stream));
    max_shared_gate_up_ = std::max(max_shared_gate_up_, device.shared_gate_up.n());
    max_shared_k_ = std::max(max_shared_k_, device.shared_down.k());
    reorders_ = reorders_ || device.shared_gate_up.reorders() || device.shared_down.reorders();
  }
  max_gate_up_ = std::max(max_gate_up_, weights.gate_up.n());
  max_down_k_ = std::max(max_down_k_, weights.down.k());

  // Copies of an expert in the order of their slots, as SlotTable has them.
  std::vector<std::vector<int32_t>> slots_of(static_cast<size_t>(num_experts_));
  for (int64_t slot = 0; slot < layout.num_slots; ++slot) {
    const int32_t expert =
        layout.expert_of_slot[static_cast<size_t>(layer * layout.num_slots + slot)];
    slots_of[static_cast<size_t>(expert)].push_back(static_cast<int32_t>(slot));
  }
  std::vector<int32_t> num_copies;
  for (const auto& slots : slots_of) {
    num_copies.push_back(static_cast<int32_t>(slots.size()));
    device.max_copies = std::max(device.max_copies, static_cast<int64_t>(slots.size()));
  }
  std::vector<int32_t> slots;
  for (auto& own : slots_of) {
    own.resize(static_cast<size_t>(device.max_copies));
    slots.insert(slots.end(), own.begin(), own.end());
  }
  NIBBLE_ASSIGN_OR_RETURN(device.num_copies, gpu::Upload(num_copies, stream));
  NIBBLE_ASSIGN_OR_RETURN(device.slots, gpu::Upload(slots, stream));
  layers_.back() = std::move(device);
  return absl::OkStatus();
}

}  // namespace nibble::engine
