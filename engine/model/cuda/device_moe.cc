// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A layer with experts as it is launched, and the memory of that.

#include "engine/model/cuda/device_moe.h"

#include <algorithm>

#include "engine/model/cuda/device_memory.h"
#include "engine/model/cuda/row_ops.h"
#include "kernels/activation/cuda/silu_mul.h"
#include "kernels/moe/cuda/moe.h"
#include "kernels/quant/cuda/quantize_rows.h"

namespace nibble::engine {

using kernels::cuda::DeviceMatrix;
using kernels::cuda::GroupedWeights;

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

void DeviceMoe::Release() {
  input_ = {}, down_input_ = {}, shared_input_ = {};
  narrow_input_ = {}, gate_up_ = {}, expert_out_ = {}, silu_workspace_ = {};
  logits_ = {}, weights_ = {};
  for (auto* ids : {&expert_ids_, &slot_ids_, &row_of_, &token_of_row_}) *ids = {};
}

absl::Status DeviceMoe::Allocate(int64_t num_tokens, cudaStream_t stream) {
  const int64_t rows = num_tokens * top_k_;
  const auto element = static_cast<int64_t>(SizeOf(activation_));
  Release();
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
      RetakeZeroed(kernels::cuda::SiluMulWorkspaceBytes(rows), stream, &silu_workspace_));
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
