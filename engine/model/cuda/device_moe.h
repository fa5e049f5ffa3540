// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The feed-forward half of layers with experts on a device: engine/model/moe_layer.h without a
// number that comes back to the host. Every launch is for all rows that there could be; the kernels
// read in device memory how many there are.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "base/cuda/buffer.h"
#include "base/cuda/stream.h"
#include "base/status.h"
#include "engine/model/cuda/device_linear.h"
#include "engine/model/model_config.h"
#include "engine/model/moe_layer.h"
#include "engine/model/shard.h"
#include "engine/moe/expert_layout.h"
#include "engine/moe/expert_load.h"

namespace nibble::engine {

struct DeviceMoeWeights {
  DeviceLinear router;  // float32
  kernels::cuda::GroupedWeights gate_up;
  kernels::cuda::GroupedWeights down;
  DeviceForms gate_up_forms;
  DeviceForms down_forms;
  bool has_shared_expert = false;
  DeviceLinear shared_gate_up;
  DeviceLinear shared_down;
  gpu::DeviceBuffer<float> shared_gate;  // [hidden_size]
  // Which slots an expert is in (kernels/moe/cuda/moe.h).
  gpu::DeviceBuffer<int32_t> num_copies;  // [num_experts]
  gpu::DeviceBuffer<int32_t> slots;       // [num_experts, max_copies]
  int64_t max_copies = 1;

  // What experts and shared expert read besides the router's float32.
  DeviceForms input_forms() const;
};

// The layers with experts of one rank, which take turns in one workspace.
class DeviceMoe {
 public:
  // `layers` are those of the rank's stage, null where a layer is dense, and outlive this; the
  // first of them is number `first_layer` of the model. UNIMPLEMENTED, naming layer and field, for
  // what the device does not have. Waits for `stream`.
  static absl::StatusOr<std::unique_ptr<DeviceMoe>> Create(
      const ModelConfig& config, const RankPlace& place, const ExpertLayout& layout,
      const std::vector<const MoeWeights*>& layers, int64_t first_layer, DType activation,
      cudaStream_t stream);

  // Takes the memory of steps of `num_tokens` tokens.
  absl::Status Allocate(int64_t num_tokens, cudaStream_t stream);
  void Release();                              // gives it back
  int64_t BytesFor(int64_t num_tokens) const;  // what this takes
  int64_t WorkspaceBytes(int64_t num_tokens, const gpu::DeviceCaps& caps, bool has_cublaslt) const;

  // Where layer `layer_idx`'s norm writes: float32 for the router, and int8 where experts take it.
  DeviceInput InputOf(int64_t layer_idx) const;
  // out [num_tokens, hidden_size] = this rank's part of what layer `layer_idx` of the stage gives
  // for InputOf(). `positions` [num_tokens] in device memory; -1: padding.
  absl::Status Run(int64_t layer_idx, const int32_t* positions, int64_t num_tokens,
                   const kernels::cuda::DeviceMatrix& out,
                   const kernels::cuda::GemmContext& context, cudaStream_t stream);

  // Copies the counters from the device, on a stream of its own. Thread-safe. What was last read
  // when the device does not answer.
  ExpertLoad load(int device) const;

 private:
  DeviceMoe(const ModelConfig& config, const RankPlace& place, const ExpertLayout& layout,
            int64_t first_layer, DType activation);
  absl::Status AddLayer(const MoeWeights& weights, const ExpertLayout& layout, int64_t layer,
                        cudaStream_t stream);
  absl::Status Route(const DeviceMoeWeights& layer, int64_t layer_idx, const int32_t* positions,
                     int64_t num_tokens, const kernels::cuda::GemmContext& context,
                     cudaStream_t stream);
  absl::Status RunExperts(const DeviceMoeWeights& layer, const DeviceInput& input,
                          int64_t num_tokens, const kernels::cuda::GemmContext& context,
                          cudaStream_t stream);
  absl::Status RunShared(const DeviceMoeWeights& layer, const DeviceInput& input,
                         int64_t num_tokens, const kernels::cuda::DeviceMatrix& out,
                         const kernels::cuda::GemmContext& context, cudaStream_t stream);
  kernels::cuda::DeviceMatrix Matrix(const gpu::DeviceBuffer<uint8_t>& memory,
                                     int64_t columns) const;

  const int64_t hidden_;
  const int64_t num_experts_;
  const int64_t top_k_;
  const bool renormalize_;
  const int64_t num_slots_;  // of this rank
  const int64_t first_slot_;
  const int64_t first_layer_;
  const int64_t model_layers_;
  const DType activation_;
  std::vector<std::optional<DeviceMoeWeights>> layers_;  // [num_layers of the stage]
  // The largest of the layers'.
  int64_t max_gate_up_ = 0;
  int64_t max_down_k_ = 0;
  int64_t max_shared_gate_up_ = 0;
  int64_t max_shared_k_ = 0;
  bool reorders_ = false;  // some shared expert does

  DeviceActivations input_;                  // [num_tokens, hidden]: float32 and int8
  gpu::DeviceBuffer<uint8_t> narrow_input_;  // [num_tokens, hidden] as experts take floats
  gpu::DeviceBuffer<float> logits_;          // [num_tokens, num_experts]
  gpu::DeviceBuffer<float> weights_;         // [num_tokens, top_k], as the next three
  gpu::DeviceBuffer<int32_t> expert_ids_;
  gpu::DeviceBuffer<int32_t> slot_ids_;
  gpu::DeviceBuffer<int32_t> row_of_;
  gpu::DeviceBuffer<int32_t> token_of_row_;  // [num_tokens * top_k]
  gpu::DeviceBuffer<int32_t> offsets_;       // [num_slots + 1]
  gpu::DeviceBuffer<uint8_t> gate_up_;       // [num_tokens * top_k, max_gate_up] or the shared's
  DeviceActivations down_input_;             // [num_tokens * top_k, max_down_k]
  DeviceActivations shared_input_;           // [num_tokens, max_shared_k]
  gpu::DeviceBuffer<uint8_t> expert_out_;    // [num_tokens * top_k, hidden]
  gpu::DeviceBuffer<uint8_t> silu_workspace_;
  gpu::DeviceBuffer<uint64_t> counters_;  // [num_layers of the stage, num_experts]

  mutable std::mutex mutex_;
  // Guarded by mutex_:
  gpu::Stream load_stream_;
  mutable std::vector<uint64_t> counts_;  // as counters_ was last read
};

}  // namespace nibble::engine
