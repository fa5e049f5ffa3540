// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/cuda/device_moe.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/cuda/error.h"
#include "engine/model/cuda/device_memory.h"
#include "engine/model/cuda/row_ops.h"
#include "kernels/activation/cuda/silu_mul.h"
#include "kernels/moe/cuda/moe.h"
#include "kernels/quant/cuda/quantize_rows.h"

namespace nibble::engine {
namespace {

using kernels::cuda::DeviceMatrix;
using kernels::cuda::DeviceWeight;
using kernels::cuda::GroupedWeights;

constexpr int64_t kRouterAlignment = 4;  // a row of logits is a whole number of 16 bytes

template <typename T>
absl::Status Upload(const std::vector<T>& values, gpu::DeviceBuffer<T>* buffer) {
  NIBBLE_ASSIGN_OR_RETURN(*buffer, gpu::DeviceBuffer<T>::Create(values.size()));
  NIBBLE_RETURN_IF_ERROR(
      gpu::CopyToDevice(buffer->data(), values.data(), buffer->size_bytes(), nullptr));
  return gpu::ToStatus(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
}

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
    const std::vector<const MoeWeights*>& layers, int64_t first_layer, DType activation) {
  if (config.moe->num_experts % kRouterAlignment != 0) {
    return Unimplemented("{} experts: the CUDA engine takes a multiple of {}",
                         config.moe->num_experts, kRouterAlignment);
  }
  std::unique_ptr<DeviceMoe> moe(new DeviceMoe(config, place, layout, first_layer, activation));
  for (const MoeWeights* weights : layers) {
    const int64_t layer = first_layer + static_cast<int64_t>(moe->layers_.size());
    moe->layers_.emplace_back();
    if (weights != nullptr) NIBBLE_RETURN_IF_ERROR(moe->AddLayer(*weights, layout, layer));
  }
  moe->counts_.resize(layers.size() * static_cast<size_t>(moe->num_experts_));
  NIBBLE_RETURN_IF_ERROR(Upload(moe->counts_, &moe->counters_));
  NIBBLE_RETURN_IF_ERROR(Retake(moe->num_slots_ + 1, &moe->offsets_));
  NIBBLE_ASSIGN_OR_RETURN(moe->load_stream_, gpu::Stream::Create());
  return moe;
}

absl::Status DeviceMoe::AddLayer(const MoeWeights& weights, const ExpertLayout& layout,
                                 int64_t layer) {
  DeviceMoeWeights device;
  const auto name = [layer](const char* part) { return fmt::format("layer {}: {}", layer, part); };
  NIBBLE_ASSIGN_OR_RETURN(device.router, DeviceLinear::Create(weights.router, name("the router")));
  NIBBLE_ASSIGN_OR_RETURN(device.gate_up,
                          Group(weights.gate_up, layer, "gate and up", &device.gate_up_forms));
  NIBBLE_ASSIGN_OR_RETURN(device.down, Group(weights.down, layer, "down", &device.down_forms));
  device.has_shared_expert = weights.has_shared_expert();
  if (device.has_shared_expert) {
    NIBBLE_ASSIGN_OR_RETURN(
        device.shared_gate_up,
        DeviceLinear::Create(weights.shared_gate_up, name("the shared expert's gate and up")));
    NIBBLE_ASSIGN_OR_RETURN(
        device.shared_down,
        DeviceLinear::Create(weights.shared_down, name("the shared expert's down")));
    NIBBLE_RETURN_IF_ERROR(Upload(weights.shared_gate, &device.shared_gate));
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
  NIBBLE_RETURN_IF_ERROR(Upload(num_copies, &device.num_copies));
  NIBBLE_RETURN_IF_ERROR(Upload(slots, &device.slots));
  layers_.back() = std::move(device);
  return absl::OkStatus();
}

int64_t DeviceMoe::BytesFor(int64_t num_tokens) const {
  const int64_t rows = num_tokens * top_k_;
  const auto element = static_cast<int64_t>(SizeOf(activation_));
  return num_tokens *
             (DeviceActivations::BytesPerRow(hidden_, reorders_) + hidden_ * 4 + num_experts_ * 4 +
              DeviceActivations::BytesPerRow(max_shared_k_, reorders_)) +
         rows * (5 * 4 + DeviceActivations::BytesPerRow(max_down_k_, false) +
                 PaddedStride(hidden_, activation_) * element) +
         std::max(rows * PaddedStride(max_gate_up_, activation_),
                  num_tokens * PaddedStride(max_shared_gate_up_, activation_)) *
             element +
         kernels::cuda::SiluMulWorkspaceBytes(rows);
}

absl::Status DeviceMoe::Allocate(int64_t num_tokens) {
  const int64_t rows = num_tokens * top_k_;
  const auto element = static_cast<int64_t>(SizeOf(activation_));
  input_ = {}, down_input_ = {}, shared_input_ = {};
  NIBBLE_ASSIGN_OR_RETURN(input_, DeviceActivations::Create(num_tokens, hidden_, reorders_));
  NIBBLE_RETURN_IF_ERROR(Retake(num_tokens * hidden_ * 4, &narrow_input_));
  NIBBLE_RETURN_IF_ERROR(Retake(num_tokens * num_experts_, &logits_));
  NIBBLE_RETURN_IF_ERROR(Retake(rows, &weights_));
  for (auto* ids : {&expert_ids_, &slot_ids_, &row_of_, &token_of_row_}) {
    NIBBLE_RETURN_IF_ERROR(Retake(rows, ids));
  }
  NIBBLE_RETURN_IF_ERROR(
      Retake(std::max(rows * PaddedStride(max_gate_up_, activation_),
                      num_tokens * PaddedStride(max_shared_gate_up_, activation_)) *
                 element,
             &gate_up_));
  NIBBLE_ASSIGN_OR_RETURN(down_input_, DeviceActivations::Create(rows, max_down_k_, false));
  NIBBLE_ASSIGN_OR_RETURN(shared_input_,
                          DeviceActivations::Create(num_tokens, max_shared_k_, reorders_));
  NIBBLE_RETURN_IF_ERROR(
      RetakeZeroed(kernels::cuda::SiluMulWorkspaceBytes(rows), &silu_workspace_));
  return Retake(rows * PaddedStride(hidden_, activation_) * element, &expert_out_);
}

int64_t DeviceMoe::WorkspaceBytes(int64_t num_tokens, const gpu::DeviceCaps& caps,
                                  bool has_cublaslt) const {
  int64_t bytes = 0;
  for (const auto& layer : layers_) {
    if (!layer.has_value()) continue;
    bytes = std::max(bytes, layer->router.WorkspaceBytes(num_tokens, caps, has_cublaslt));
    for (const GroupedWeights* weights : {&layer->gate_up, &layer->down}) {
      bytes = std::max(bytes, kernels::cuda::WorkspaceBytes(weights->desc(), num_tokens * top_k_,
                                                            caps, /*has_cublaslt=*/false));
    }
    if (!layer->has_shared_expert) continue;
    for (const DeviceLinear* linear : {&layer->shared_gate_up, &layer->shared_down}) {
      bytes = std::max(bytes, linear->WorkspaceBytes(num_tokens, caps, has_cublaslt));
    }
  }
  return bytes;
}

DeviceInput DeviceMoe::InputOf(int64_t layer_idx) const {
  const DeviceMoeWeights& layer = *layers_[static_cast<size_t>(layer_idx)];
  return input_.For({.int8 = layer.input_forms().int8, .floats = DType::kF32}, hidden_);
}

DeviceMatrix DeviceMoe::Matrix(const gpu::DeviceBuffer<uint8_t>& memory, int64_t columns) const {
  return {
      .data = memory.data(), .dtype = activation_, .stride = PaddedStride(columns, activation_)};
}

absl::Status DeviceMoe::Run(int64_t layer_idx, const int32_t* positions, int64_t num_tokens,
                            const DeviceMatrix& out, const kernels::cuda::GemmContext& context,
                            cudaStream_t stream) {
  const DeviceMoeWeights& layer = *layers_[static_cast<size_t>(layer_idx)];
  NIBBLE_RETURN_IF_ERROR(Route(layer, layer_idx, positions, num_tokens, context, stream));

  DeviceInput input = InputOf(layer_idx);
  const DeviceForms forms = layer.input_forms();
  if (forms.floats.has_value() && *forms.floats != DType::kF32) {
    const DeviceMatrix narrow = {.data = narrow_input_.data(),
                                 .dtype = *forms.floats,
                                 .stride = PaddedStride(hidden_, *forms.floats)};
    NIBBLE_RETURN_IF_ERROR(kernels::cuda::QuantizeRows(input.values, num_tokens, hidden_,
                                                       {.values = narrow}, nullptr, stream));
    input.values = narrow;
  }
  NIBBLE_RETURN_IF_ERROR(RunExperts(layer, input, num_tokens, context, stream));
  if (layer.has_shared_expert) {
    NIBBLE_RETURN_IF_ERROR(RunShared(layer, input, num_tokens, out, context, stream));
    const DeviceMatrix x = InputOf(layer_idx).values;
    NIBBLE_RETURN_IF_ERROR(kernels::cuda::GateRows({.num_rows = num_tokens,
                                                    .hidden = hidden_,
                                                    .x = static_cast<const float*>(x.data),
                                                    .x_stride = x.stride,
                                                    .gate = layer.shared_gate.data(),
                                                    .y = out},
                                                   stream));
  }
  return kernels::cuda::Combine({.num_tokens = num_tokens,
                                 .num_experts_per_tok = top_k_,
                                 .hidden = hidden_,
                                 .weights = weights_.data(),
                                 .row_of = row_of_.data(),
                                 .y = Matrix(expert_out_, hidden_),
                                 .accumulate = layer.has_shared_expert,
                                 .out = out},
                                stream);
}

absl::Status DeviceMoe::Route(const DeviceMoeWeights& layer, int64_t layer_idx,
                              const int32_t* positions, int64_t num_tokens,
                              const kernels::cuda::GemmContext& context, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(layer.router.Run(
      InputOf(layer_idx), num_tokens,
      {.data = logits_.data(), .dtype = DType::kF32, .stride = num_experts_}, context, stream));
  NIBBLE_RETURN_IF_ERROR(kernels::cuda::Route({.num_tokens = num_tokens,
                                               .num_experts = num_experts_,
                                               .num_experts_per_tok = top_k_,
                                               .renormalize = renormalize_,
                                               .logits = logits_.data(),
                                               .expert_ids = expert_ids_.data(),
                                               .weights = weights_.data()},
                                              stream));
  NIBBLE_RETURN_IF_ERROR(
      kernels::cuda::ChooseSlots({.num_tokens = num_tokens,
                                  .num_experts_per_tok = top_k_,
                                  .expert_ids = expert_ids_.data(),
                                  .positions = positions,
                                  .num_copies = layer.num_copies.data(),
                                  .slots = layer.slots.data(),
                                  .max_copies = layer.max_copies,
                                  .slot_ids = slot_ids_.data(),
                                  .load = counters_.data() + layer_idx * num_experts_},
                                 stream));
  return kernels::cuda::Permute({.num_tokens = num_tokens,
                                 .num_experts_per_tok = top_k_,
                                 .slot_ids = slot_ids_.data(),
                                 .first_slot = static_cast<int32_t>(first_slot_),
                                 .num_slots = static_cast<int32_t>(num_slots_),
                                 .offsets = offsets_.data(),
                                 .token_of_row = token_of_row_.data(),
                                 .row_of = row_of_.data()},
                                stream);
}

// expert_out_ of the rows that are this rank's.
absl::Status DeviceMoe::RunExperts(const DeviceMoeWeights& layer, const DeviceInput& input,
                                   int64_t num_tokens, const kernels::cuda::GemmContext& context,
                                   cudaStream_t stream) {
  const int64_t max_rows = num_tokens * top_k_;
  const int64_t channels = layer.down.desc().k;
  const DeviceMatrix gate_up = Matrix(gate_up_, 2 * channels);
  NIBBLE_RETURN_IF_ERROR(kernels::cuda::RunGrouped(layer.gate_up,
                                                   {.max_rows = max_rows,
                                                    .offsets = offsets_.data(),
                                                    .a_rows = token_of_row_.data(),
                                                    .a = input.values,
                                                    .a8 = input.quantized,
                                                    .d = gate_up},
                                                   context, stream));
  const DeviceInput down_input = down_input_.For(layer.down_forms, channels);
  NIBBLE_RETURN_IF_ERROR(kernels::cuda::SiluMul({.num_rows = max_rows,
                                                 .intermediate = channels,
                                                 .gate_up = gate_up,
                                                 .out = down_input.output(),
                                                 .valid_rows = offsets_.data() + num_slots_,
                                                 .workspace = silu_workspace_.data()},
                                                stream));
  return kernels::cuda::RunGrouped(layer.down,
                                   {.max_rows = max_rows,
                                    .offsets = offsets_.data(),
                                    .a = down_input.values,
                                    .a8 = down_input.quantized,
                                    .d = Matrix(expert_out_, hidden_)},
                                   context, stream);
}

// Its gate and up are where the experts' were.
absl::Status DeviceMoe::RunShared(const DeviceMoeWeights& layer, const DeviceInput& input,
                                  int64_t num_tokens, const DeviceMatrix& out,
                                  const kernels::cuda::GemmContext& context, cudaStream_t stream) {
  const int64_t channels = layer.shared_down.k();
  const DeviceMatrix gate_up = Matrix(gate_up_, 2 * channels);
  NIBBLE_RETURN_IF_ERROR(layer.shared_gate_up.Run(input, num_tokens, gate_up, context, stream));
  const DeviceInput down_input = shared_input_.For(layer.shared_down);
  NIBBLE_RETURN_IF_ERROR(kernels::cuda::SiluMul({.num_rows = num_tokens,
                                                 .intermediate = channels,
                                                 .gate_up = gate_up,
                                                 .out = down_input.output(),
                                                 .workspace = silu_workspace_.data()},
                                                stream));
  return layer.shared_down.Run(down_input, num_tokens, out, context, stream);
}

ExpertLoad DeviceMoe::load(int device) const {
  const std::lock_guard lock(mutex_);
  std::vector<uint64_t> counts(counts_.size());
  const auto read = [&]() -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(device));
    NIBBLE_RETURN_IF_ERROR(gpu::CopyToHost(counts.data(), counters_.data(), counters_.size_bytes(),
                                           load_stream_.get()));
    return load_stream_.Synchronize();
  };
  if (read().ok()) counts_ = counts;
  ExpertLoad load{
      .num_layers = model_layers_,
      .num_experts = num_experts_,
      .tokens = std::vector<uint64_t>(static_cast<size_t>(model_layers_ * num_experts_))};
  std::copy(counts_.begin(), counts_.end(), load.tokens.begin() + first_layer_ * num_experts_);
  return load;
}

}  // namespace nibble::engine
