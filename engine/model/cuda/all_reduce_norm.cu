// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <type_traits>

#include "base/cuda/float16.cuh"
#include "base/cuda/shared_memory.cuh"
#include "comm/gpu/p2p_communicator.h"
#include "comm/gpu/p2p_job.cuh"
#include "engine/model/cuda/all_reduce_norm.h"
#include "kernels/norm/cuda/rms_norm_row.cuh"
#include "kernels/quant/cuda/row_plan.h"

namespace nibble::engine {
namespace {

using kernels::cuda::RmsNormArgs;
using kernels::cuda::RmsNormShared;

// The row that the block has just written, as delta.
struct NormRow {
  static constexpr bool kTakesRows = true;
  using Shared = RmsNormShared;

  __device__ void operator()(int64_t row, Shared* shared) const {
    __syncthreads();  // the row before is through with the shared memory
    if (norm.delta.dtype == DType::kBf16) {
      kernels::cuda::RmsNormRow<0, gpu::Bf16>(norm, row, shared);
    } else {
      kernels::cuda::RmsNormRow<0, float>(norm, row, shared);
    }
  }

  const RmsNormArgs& norm;
};

struct SharedMemory {
  comm::P2pShared p2p;
  alignas(16) RmsNormShared norm;
};

template <int kBits, bool kTwoShot>
__global__ void __launch_bounds__(kernels::cuda::kMaxRowThreads)
    AllReduceNormKernel(const __grid_constant__ comm::P2pLink link,
                        const __grid_constant__ comm::P2pJob job,
                        const __grid_constant__ RmsNormArgs norm) {
  auto* const shared = gpu::SharedAs<SharedMemory>();
  comm::RunP2pAllReduce<kBits, kTwoShot>(link, job, NormRow{norm}, comm::NoStall(), &shared->p2p,
                                         &shared->norm);
}

// What `auto` chooses from; the widths below are rare, and their rows are not worth an instance.
bool HasKernel(int bits) { return bits >= 4; }

absl::Status Fused(const comm::P2pCommunicator& p2p, const comm::P2pCommunicator::RowPlan& rows,
                   const comm::DeviceAllReduceArgs& delta, const RmsNormArgs& norm,
                   cudaStream_t stream) {
  const unsigned threads = kernels::cuda::PlanRow(norm.hidden).threads;
  const comm::cuda::DeviceRows view = {
      .data = delta.data,
      .dtype = delta.dtype,
      .groups = {.row_size = delta.row_size, .group_size = rows.codec.group_size}};
  return comm::cuda::DispatchBits(rows.codec.bits, [&](auto bits) -> absl::Status {
    if constexpr (bits() >= 4) {
      const auto kernel = rows.plan.two_shot ? AllReduceNormKernel<bits(), true>
                                             : AllReduceNormKernel<bits(), false>;
      return comm::ForP2pParts(rows.plan, rows.codec, view,
                               [&](const comm::P2pJob& job, unsigned grid) {
                                 return gpu::Launch(kernel,
                                                    {.grid = {grid},
                                                     .block = {threads},
                                                     .shared_bytes = sizeof(SharedMemory),
                                                     .stream = stream},
                                                    p2p.link(), job, norm);
                               });
    } else {
      return Internal("no fused all-reduce of {} bits", int{bits()});
    }
  });
}

// A row that is too long for it goes by two kernels.
absl::StatusOr<comm::P2pCommunicator::RowPlan> PlanFused(comm::DeviceCommunicator* communicator,
                                                         const comm::DeviceAllReduceArgs& delta) {
  comm::P2pCommunicator* const p2p = communicator->p2p();
  if (p2p == nullptr || p2p->size() < 2 || delta.num_rows == 0) {
    return Unimplemented("no memory of peers to sum in");
  }
  NIBBLE_ASSIGN_OR_RETURN(comm::P2pCommunicator::RowPlan rows, p2p->PlanRows(delta));
  if (!HasKernel(rows.codec.bits)) {
    return Unimplemented("no fused all-reduce of {} bits", rows.codec.bits);
  }
  return rows;
}

}  // namespace

bool IsAllReduceNormFused(comm::DeviceCommunicator* communicator,
                          const comm::DeviceAllReduceArgs& delta) {
  return PlanFused(communicator, delta).ok();
}

absl::Status AllReduceNorm(comm::DeviceCommunicator* communicator,
                           const comm::DeviceAllReduceArgs& delta, const RmsNormArgs& norm,
                           cudaStream_t stream) {
  if (norm.delta.data != delta.data || norm.delta.dtype != delta.dtype ||
      norm.delta.stride != delta.row_size || norm.hidden != delta.row_size ||
      norm.num_rows != delta.num_rows) {
    return InvalidArgument(
        "a norm of {} rows of {} values, {} apart, after an all-reduce of {} rows of {}",
        norm.num_rows, norm.hidden, norm.delta.stride, delta.num_rows, delta.row_size);
  }
  NIBBLE_RETURN_IF_ERROR(kernels::cuda::CheckRmsNorm(norm));
  if (const auto rows = PlanFused(communicator, delta); rows.ok()) {
    NIBBLE_RETURN_IF_ERROR(communicator->Check());
    return Fused(*communicator->p2p(), *rows, delta, norm, stream);
  }
  NIBBLE_RETURN_IF_ERROR(communicator->AllReduce(delta, stream));
  return kernels::cuda::RmsNorm(norm, stream);
}

}  // namespace nibble::engine
