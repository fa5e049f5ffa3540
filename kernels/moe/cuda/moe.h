// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Routing, permutation and combination of experts on a device:
// kernels/moe/{route,permute,combine}.h, to the bit. Offsets stay in device memory: nothing comes
// back to the host between them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "kernels/device/device_matrix.h"
#include "kernels/moe/combine.h"
#include "kernels/moe/permute.h"
#include "kernels/moe/route.h"

namespace nibble::kernels::cuda {

// Pointers of the structs are to device memory. logits are float32.
absl::Status Route(const RouteArgs& args, cudaStream_t stream);

// Which copy of an expert a token goes to: slot_ids[t, j] = slots[e, positions[t] mod
// num_copies[e]], e = expert_ids[t, j], as engine/moe/expert_layout.h spreads tokens over copies. A
// token at a negative position is padding of a captured graph: its slots are -1, which Permute
// takes for another rank's, and it is no load.
struct SlotArgs {
  int64_t num_tokens = 0;
  int64_t num_experts_per_tok = 0;      // k
  const int32_t* expert_ids = nullptr;  // [num_tokens, k]
  // [num_tokens]; -1: a token that is padding of a captured graph, which gets slots -1 (no rank's)
  // and is not counted.
  const int32_t* positions = nullptr;
  const int32_t* num_copies = nullptr;  // [num_experts]
  const int32_t* slots = nullptr;       // [num_experts, max_copies]
  int64_t max_copies = 1;
  int32_t* slot_ids = nullptr;  // [num_tokens, k]
  uint64_t* load = nullptr;     // [num_experts], or null: each expert's tokens are added
};
absl::Status ChooseSlots(const SlotArgs& args, cudaStream_t stream);

absl::Status Permute(const PermuteArgs& args, cudaStream_t stream);

// As CombineArgs, with y and out of an activation type.
struct DeviceCombineArgs {
  int64_t num_tokens = 0;
  int64_t num_experts_per_tok = 0;
  int64_t hidden = 0;
  const float* weights = nullptr;   // [num_tokens, k]
  const int32_t* row_of = nullptr;  // [num_tokens, k], -1: no row
  DeviceMatrix y;                   // [rows, hidden]
  bool accumulate = false;
  DeviceMatrix out;  // [num_tokens, hidden]
};
absl::Status Combine(const DeviceCombineArgs& args, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
