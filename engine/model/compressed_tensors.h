// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Weights on disk as compressed-tensors has them, for a module of weights [n, k] called e.g.
// "model.layers.0.mlp.up_proj". 4 bit, format pack-quantized:
//
//   NAME.weight_packed  int32 [n, k / 8]   nibble i (bits 4i..4i+3) of word c is code q + 8 of
//                                          column 8c + i, q in -8..7
//   NAME.weight_scale   float [n, ceil(k / group_size)]; strategy channel: [n, 1]
//   NAME.weight_shape   int64 [2] = n, k
//
// Bytes of a packed row are those of kernels::Int4Weight (low half first), so both ways are copies.
// nibble writes scales as float32: the products S * c of the folded form stay what they are, and
// the integers S are found again when loading. 8 bit, format int-quantized:
//
//   NAME.weight        int8 [n, k]
//   NAME.weight_scale  float [n, 1]
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/channel_order.h"
#include "engine/model/quantization_config.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_writer.h"
#include "engine/model/shard.h"
#include "kernels/quant/int4_weight.h"
#include "kernels/quant/int8_weight.h"

namespace nibble::engine {

// Whether the checkpoint holds `module` packed (it may as well hold it plain: `ignore`).
bool IsPackedInt4(const Checkpoint& checkpoint, std::string_view module);

struct PackedModule {
  std::string_view name;
  int64_t n = 0;
  int64_t k = 0;             // a multiple of 8
  int64_t group_size = 128;  // k or more: one scale per output channel
};

// What WritePackedInt4 wrote. INVALID_ARGUMENT or NOT_FOUND, naming the tensor, when one is
// missing, of another shape or type, or a scale is not finite. UNIMPLEMENTED for zero points and
// act-order, by name.
absl::StatusOr<kernels::Int4Weight> ReadPackedInt4(const Checkpoint& checkpoint,
                                                   const PackedModule& module);

// Reads the share of a 4-bit module of layout kPacked or kBytes in any of its forms:
//
//   NAME.weight             int8 [n, k]           kBytes: one code q in -8..7 a byte
//   NAME.weight_zero_point  int32 [n / 8, groups] asymmetric; nibble i of word (r, g) is the zero
//                                                 point + 8 of row 8r + i; kBytes: int8 [n, groups]
//   NAME.weight_g_idx       int32 [k]             the group of each input channel
//
// Errors as of ReadPackedInt4; INVALID_ARGUMENT for a code or zero point out of range;
// UNIMPLEMENTED for act-order where the share has not all columns (SortByGroup). REQUIRES: columns
// that begin and end with groups (CheckOnGroups).
absl::StatusOr<StoredInt4> ReadCompressedInt4(const Checkpoint& checkpoint, std::string_view name,
                                              const MatrixShare& share, const WeightScheme& scheme,
                                              ThreadPool* pool);

// The tensors that WritePackedInt4 writes, for SafetensorsWriter::Create.
std::vector<TensorSpec> PackedInt4Specs(const PackedModule& module);

// INVALID_ARGUMENT for zero points and k no multiple of 8: the form cannot hold them.
absl::Status WritePackedInt4(std::string_view name, const kernels::Int4Weight& weight,
                             SafetensorsWriter* writer);

struct Int8Module {
  std::string_view name;
  int64_t n = 0;
  int64_t k = 0;
};

// INVALID_ARGUMENT or NOT_FOUND, naming the tensor, when one is missing, of another shape or type,
// or a scale is not finite. UNIMPLEMENTED for zero points and static activation scales, by name.
absl::StatusOr<kernels::Int8Weight> ReadInt8(const Checkpoint& checkpoint,
                                             const Int8Module& module);
absl::StatusOr<kernels::Int8Weight> ReadInt8(const Checkpoint& checkpoint, std::string_view name,
                                             const MatrixShare& share);

// The tensors that WriteInt8 writes.
std::vector<TensorSpec> Int8Specs(const Int8Module& module);

absl::Status WriteInt8(std::string_view name, const kernels::Int8Weight& weight,
                       SafetensorsWriter* writer);

// What nibble writes: the Linear modules but `ignore`, all in one scheme.
struct CheckpointScheme {
  int weight_bits = 4;       // 4: pack-quantized, 8: int-quantized, one scale per output channel
  int64_t group_size = 128;  // of 4-bit weights; 0: one scale per output channel
  int activation_bits = 8;   // 8: int8, dynamic, one scale per token; 16: not quantized
  std::vector<std::string> ignore;  // module names left as they are, e.g. "lm_head"
};

// quantization_config of config.json. What ParseModelConfig reads back.
// REQUIRES: weight_bits 4, or 8 with activation_bits 8.
nlohmann::json QuantizationConfigJson(const CheckpointScheme& scheme);

}  // namespace nibble::engine
