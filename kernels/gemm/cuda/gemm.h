// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Linear layers on a device: kernels/gemm/gemm.h's families and arithmetic, D = A * B^T.
//
// Weights are the first operand of the matrix instructions and tokens the flexible second one, so
// that few tokens waste little (README.md has the layout). One layout serves all variants of a
// family: which one runs depends on the number of tokens, and a server has both few and many.
//
//   W4A8, W8A8: integer sums are exact, bits equal to those of kernels::Run.
//   dense: bf16 and f16 with float32 sums; float32 by fused multiply-adds.
//
// Batch invariance: the bits of a row of D depend on that row of A and on B alone. Integer sums are
// exact in any order; where order matters (dense, float scales) k is cut into GemmPlan::k_parts
// parts, each summed in rising order and then added in rising order, and Choose() makes k_parts a
// function of n and k alone, never of the number of tokens. cuBLASLt keeps no such promise.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/device/device_matrix.h"
#include "kernels/gemm/cuda/weight_layout.h"
#include "kernels/gemm/gemm.h"

namespace nibble::kernels::cuda {

// ---- Choosing (pure, tested without a device) ----

enum class GemmKernel {
  kSkinny,    // few tokens: weights from memory to registers, mma.sync (sm_80 and later)
  kTiled,     // mma.sync with a cp.async pipeline (sm_80 and later)
  kWgmma,     // wgmma with TMA (sm_90a exactly), integer families
  kCublasLt,  // dense, where the library was found
  kFloat,     // float32 weights: multiply-adds
};
std::string_view ToString(GemmKernel kernel);

struct GemmPlan {
  GemmKernel kernel = GemmKernel::kSkinny;
  int tile_m = 0;   // output channels of a block
  int tile_n = 0;   // tokens of a block
  int k_parts = 1;  // of which a sum is made
  int split_k = 1;  // blocks that share the k of a tile: 1 or k_parts
  int stages = 1;
  int64_t shared_bytes = 0;
  int64_t workspace_bytes = 0;
  int blocks = 0;  // kWgmma: of the grid, each of which takes tiles in turn
};

// OK when there is a kernel for `desc` on a device of `sm`; else UNIMPLEMENTED or INVALID_ARGUMENT
// naming the field and the limit.
absl::Status Supports(const GemmDesc& desc, const gpu::DeviceCaps& caps);
// REQUIRES Supports(). `has_cublaslt`: the library was found and the weight is not an expert's.
GemmPlan Choose(const GemmDesc& desc, int64_t num_tokens, const gpu::DeviceCaps& caps,
                bool has_cublaslt);
// The most that any Choose() for up to max_tokens takes.
int64_t WorkspaceBytes(const GemmDesc& desc, int64_t max_tokens, const gpu::DeviceCaps& caps,
                       bool has_cublaslt);

// ---- Weights ----

// In device memory, in the layout of the kernels. Immutable after packing.
class DeviceWeight final : public PackedWeight {
 public:
  const GemmDesc& desc() const override { return desc_; }
  Isa isa() const override { return Isa::kRef; }
  size_t size_bytes() const override { return codes_.size_bytes() + scales_.size_bytes(); }
  std::string variant_name() const override;  // "w4a8_folded_cuda"

  const WeightLayout& layout() const { return layout_; }
  const uint8_t* codes() const { return codes_.data(); }
  const uint8_t* scales() const { return scales_.data(); }  // null: dense
  const uint8_t* zeros() const {                            // null: 8 everywhere
    return has_zero_points_ ? scales() + layout_.zeros_offset : nullptr;
  }
  int64_t padded_n() const { return layout_.padded_n; }
  int64_t padded_k() const { return layout_.padded_k; }  // dense: elements between rows

 private:
  friend class WeightUploader;
  GemmDesc desc_;
  WeightLayout layout_;
  bool has_zero_points_ = false;
  gpu::DeviceBuffer<uint8_t> codes_;
  gpu::DeviceBuffer<uint8_t> scales_;
};

// Packs on the host and uploads, as kernels::PackDense, PackInt4 and PackInt8 do for CPUs, with
// their errors. Waits for the upload. `storage` f32, bf16 or f16; converted to `target`.
absl::StatusOr<std::unique_ptr<DeviceWeight>> PackDense(const void* weights, DType storage,
                                                        int64_t n, int64_t k, DType target,
                                                        ThreadPool* pool);
absl::StatusOr<std::unique_ptr<DeviceWeight>> PackInt4(const Int4Weight& weight, ScaleForm form,
                                                       ThreadPool* pool);
absl::StatusOr<std::unique_ptr<DeviceWeight>> PackInt8(const Int8Weight& weight, ThreadPool* pool);

// ---- Running ----

class CublasLt;  // cublaslt.h

// Of one device; not thread-safe: the workspace is one.
struct GemmContext {
  gpu::DeviceCaps caps;
  CublasLt* cublaslt = nullptr;  // null: not found
  void* workspace = nullptr;     // device memory
  int64_t workspace_bytes = 0;   // at least WorkspaceBytes() of every weight that is run
};

struct DeviceGemmArgs {
  int64_t m = 0;                // tokens; 0 is allowed
  DeviceMatrix a;               // dense: [m, k] of the weight's type
  QuantizedRows a8;             // W4A8, W8A8: device memory; stride a multiple of 16
  const float* bias = nullptr;  // [n] or null; device memory
  DeviceMatrix d;               // [m, n] of f32 or bf16 (f16: of f16 weights)
};
absl::Status Run(const DeviceWeight& weight, const DeviceGemmArgs& args, const GemmContext& context,
                 cudaStream_t stream);

// Grouped, as kernels/gemm/grouped_gemm.h: rows offsets[g] .. offsets[g + 1] - 1 of D times the
// weights of group g. All pointers are to device memory, `offsets` written by kernels before:
// launches are for max_rows rows, and blocks beyond offsets[num_groups] end at once.
//
// The weights of one matrix of all experts of a layer, of one desc(): a table in device memory,
// made once.
class GroupedWeights {
 public:
  // `weights` are not owned and outlive it; one for each group, of equal desc().
  static absl::StatusOr<GroupedWeights> Create(std::span<const DeviceWeight* const> weights);
  const GemmDesc& desc() const { return desc_; }
  int64_t num_groups() const { return num_groups_; }
  struct Entry {
    const uint8_t* codes;
    const uint8_t* scales;
    const uint8_t* zeros;  // null: 8 everywhere
  };
  const Entry* entries() const { return entries_.data(); }  // device memory, [num_groups]

 private:
  GemmDesc desc_;
  int64_t num_groups_ = 0;
  gpu::DeviceBuffer<Entry> entries_;
};

struct DeviceGroupedGemmArgs {
  int64_t max_rows = 0;              // of D
  const int32_t* offsets = nullptr;  // [num_groups + 1]
  const int32_t* a_rows = nullptr;   // [offsets[num_groups]] or null: row i
  DeviceMatrix a;
  QuantizedRows a8;
  DeviceMatrix d;  // [max_rows, n]
};
absl::Status RunGrouped(const GroupedWeights& weights, const DeviceGroupedGemmArgs& args,
                        const GemmContext& context, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
