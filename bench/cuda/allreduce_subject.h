// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is timed between devices: one way to sum rows, alone or with the norm that follows it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/cuda/device.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/cuda_allreduce_bench.h"
#include "comm/all_reduce.h"
#include "comm/communicator.h"
#include "comm/gpu/device_communicator.h"
#include "comm/gpu/nccl_library.h"
#include "kernels/norm/cuda/rms_norm.h"

namespace nibble::bench {

enum class AllReduceOp {
  kSum,
  kSumThenNorm,  // residual, RMSNorm and quantization by a kernel of their own
  kFusedNorm,    // by the kernel that sums
};
inline constexpr AllReduceOp kAllReduceOps[] = {AllReduceOp::kSum, AllReduceOp::kSumThenNorm,
                                                AllReduceOp::kFusedNorm};
std::string_view ToString(AllReduceOp op);

// The same on all ranks.
struct AllReduceSpec {
  enum class Kind {
    kNccl,      // ncclAllReduce of bf16
    kCodec,     // one codec for all sizes; bf16 is one, too
    kMeasured,  // what the communicator has measured, size by size
  };
  Kind kind = Kind::kCodec;
  std::string name;  // "nccl", "bf16", "int4", "auto"
  comm::AllReduceOptions mode;
  comm::Algorithm algorithm = comm::Algorithm::kTwoShot;  // of kCodec

  // What is summed against.
  bool is_uncompressed() const { return kind == Kind::kNccl || name == "bf16"; }
};
// Uncompressed ones first.
absl::StatusOr<std::vector<AllReduceSpec>> AllReduceSpecs(const CudaAllReduceBenchOptions& options);

struct AllReduceLinks {
  comm::Communicator* host = nullptr;
  gpu::DeviceCaps caps;
  std::string transport;  // auto, p2p, nccl, host
  int64_t max_values = 0;
  int64_t row_size = 0;
  ThreadPool* pool = nullptr;
};
// The same memory, summed and normed.
struct AllReduceRows {
  comm::DeviceAllReduceArgs sum;
  kernels::cuda::RmsNormArgs norm;
};

class AllReduceSubject {
 public:
  virtual ~AllReduceSubject() = default;

  virtual std::string name() const = 0;  // of what bytes travel by
  // False: Enqueue() returns when the sum is there.
  virtual bool is_asynchronous() const = 0;
  // What such a message takes.
  virtual comm::AllReduceChoice Choice(const AllReduceRows& rows) const = 0;
  virtual bool IsFused(const AllReduceRows& rows) const = 0;
  virtual absl::Status Enqueue(AllReduceOp op, const AllReduceRows& rows, cudaStream_t stream) = 0;
  // A deadline for what was enqueued.
  virtual absl::Status Watch(cudaStream_t stream) = 0;
  virtual absl::Status Check() = 0;
  virtual void Abort(const std::string& reason) = 0;
};

// By all ranks. UNIMPLEMENTED on all of them, with the reason, where the links have no such thing.
absl::StatusOr<std::unique_ptr<AllReduceSubject>> MakeAllReduceSubject(
    const AllReduceSpec& spec, const AllReduceLinks& links,
    const absl::StatusOr<const comm::NcclLibrary*>& nccl);

}  // namespace nibble::bench
