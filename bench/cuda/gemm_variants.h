// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What `nibble bench gemm --device cuda` measures: products of one shape, one way to compute them
// each.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/cuda/buffer.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/cuda/device_meter.h"
#include "bench/cuda_gemm_bench.h"
#include "bench/report.h"
#include "bench/roofline.h"
#include "kernels/gemm/cuda/cublaslt.h"
#include "kernels/gemm/cuda/gemm.h"
#include "kernels/gemm/gemm.h"

namespace nibble::bench {

// Weights are in device memory as long as it lives.
class GemmSubject {
 public:
  virtual ~GemmSubject() = default;

  // Before the others: for steps of `num_tokens`.
  virtual absl::Status Prepare(int64_t num_tokens) = 0;
  // Enqueues call `call` of num_calls() that differ in what they read: together more than a cache
  // holds. Quantizing the activations is part of it.
  virtual absl::Status Run(int call) = 0;
  virtual int num_calls() const = 0;
  // Of weights, that a call reads on average.
  virtual double bytes() const = 0;
  virtual bool is_int8() const = 0;
  // "wgmma n64 k/1"
  virtual std::string kernel() const = 0;
};

// A subject takes much memory: one is made, measured and given back before the next one.
struct GemmVariant {
  std::string name;
  std::function<absl::StatusOr<std::unique_ptr<GemmSubject>>()> make;
};

struct GemmSetup {
  const DeviceMeter* meter = nullptr;
  kernels::cuda::CublasLt* lt = nullptr;  // null: not found
  ThreadPool* pool = nullptr;
  int64_t max_tokens = 0;
};

// bf16 comes first: the others' rows name their ratio to it. REQUIRES: what `setup` points to
// outlives the variants. gemm_dense.cc and gemm_experts.cc.
std::vector<GemmVariant> DenseVariants(const CudaGemmShape& shape, const GemmSetup& setup);
std::vector<GemmVariant> ExpertVariants(const CudaGemmShape& shape, const GemmSetup& setup);

// Adds the rows of `variants`, in their order. What cannot be made or measured is a row with
// `error` (of all numbers of tokens without `m`), so that the others are not lost.
struct GemmRun {
  const CudaGemmBenchOptions* options = nullptr;
  const DeviceMeter* meter = nullptr;
  const DevicePeaks* peaks = nullptr;
};
void MeasureVariants(const GemmRun& run, const CudaGemmShape& shape,
                     const std::vector<GemmVariant>& variants, Report* report);

// "w4a8-folded" ... of bench/gemm_subject.h, with the sizes of `shape`.
kernels::GemmDesc DescOf(std::string_view kind, const CudaGemmShape& shape);

// Random activations, the place of D, and a workspace.
class GemmBuffers {
 public:
  // A [num_a_rows, k], D [num_d_rows, n].
  static absl::StatusOr<GemmBuffers> Create(int64_t num_a_rows, int64_t k, int64_t num_d_rows,
                                            int64_t n, int64_t workspace_bytes,
                                            cudaStream_t stream);

  // From row `first_row` on.
  kernels::cuda::DeviceMatrix A(int64_t first_row = 0) const;
  kernels::cuda::DeviceMatrix D(int64_t first_row = 0) const;
  kernels::QuantizedRows A8() const;
  absl::Status Quantize(int64_t num_rows, cudaStream_t stream) const;
  uint8_t* workspace() const { return workspace_.data(); }
  int64_t workspace_bytes() const { return static_cast<int64_t>(workspace_.size()); }
  int64_t k_stride() const { return k_stride_; }

 private:
  int64_t k_ = 0;
  int64_t k_stride_ = 0;
  int64_t n_stride_ = 0;
  gpu::DeviceBuffer<uint16_t> a_;
  gpu::DeviceBuffer<int8_t> a8_;
  gpu::DeviceBuffer<float> a8_scales_;
  gpu::DeviceBuffer<int32_t> a8_sums_;
  gpu::DeviceBuffer<uint16_t> d_;
  gpu::DeviceBuffer<uint8_t> workspace_;
};

}  // namespace nibble::bench
