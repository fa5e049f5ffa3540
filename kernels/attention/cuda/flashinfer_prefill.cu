// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <exception>

#include <flashinfer/attention/scheduler.cuh>

#include "base/cuda/error.h"
#include "kernels/attention/cuda/flashinfer_params.cuh"
#include "kernels/attention/cuda/flashinfer_prefill.h"

namespace nibble::kernels::cuda::flashinfer_prefill {
namespace {

// The library throws where it does not return an error.
template <typename Call>
absl::Status Guarded(const char* what, const Call& call) {
  try {
    return gpu::ToStatus(call(), what);
  } catch (const std::exception& e) {
    return Internal("{}: {}", what, e.what());
  }
}

template <typename T>
T* At(void* base, int64_t offset) {
  return flashinfer::GetPtrFromBaseOffset<T>(base, offset);
}

}  // namespace

struct Plan::Info {
  flashinfer::PrefillPlanInfo plan;
};
Plan::Plan() : info_(std::make_unique<Info>()) {}
Plan::~Plan() = default;

absl::Status Plan::Make(const Shape& shape, const Step& step, const Workspace& workspace,
                        cudaStream_t stream) {
  num_seqs_ = step.num_seqs;
  return Guarded("FlashInfer's plan", [&] {
    return flashinfer::PrefillPlan<int32_t>(
        workspace.floats, workspace.float_bytes, workspace.ints, workspace.pinned,
        workspace.int_bytes, info_->plan, step.query_start, step.pages_start,
        static_cast<uint32_t>(step.num_tokens), static_cast<uint32_t>(step.num_seqs),
        static_cast<uint32_t>(shape.num_heads), static_cast<uint32_t>(shape.num_kv_heads),
        static_cast<uint32_t>(shape.head_dim), static_cast<uint32_t>(shape.head_dim),
        static_cast<uint32_t>(shape.block_size), /*enable_cuda_graph=*/false,
        /*sizeof_dtype_o=*/2, /*window_left=*/-1, /*fixed_split_size=*/-1,
        /*disable_split_kv=*/false, /*num_colocated_ctas=*/0, /*uniform_q_len=*/0, stream);
  });
}

absl::Status Plan::Run(const Shape& shape, const DeviceStep& step, const Workspace& workspace,
                       const Tensors& tensors, cudaStream_t stream) const {
  const flashinfer::PrefillPlanInfo& plan = info_->plan;
  using Element = __nv_bfloat16;
  const flashinfer::paged_kv_t<Element, int32_t> paged_kv(
      static_cast<uint32_t>(shape.num_kv_heads), static_cast<uint32_t>(shape.block_size),
      static_cast<uint32_t>(shape.head_dim), static_cast<uint32_t>(num_seqs_),
      flashinfer::QKVLayout::kHND, static_cast<Element*>(tensors.keys),
      static_cast<Element*>(tensors.values), step.pages, step.pages_start, step.last_page_lens);
  Params params(static_cast<Element*>(tensors.q), paged_kv, /*maybe_custom_mask=*/nullptr,
                step.query_start, /*maybe_mask_indptr=*/nullptr, /*maybe_q_rope_offset=*/nullptr,
                static_cast<Element*>(tensors.out), /*lse=*/nullptr,
                /*maybe_alibi_slopes=*/nullptr, static_cast<uint32_t>(shape.num_heads),
                static_cast<int32_t>(tensors.q_stride), static_cast<int32_t>(shape.head_dim),
                /*window_left=*/-1, /*logits_soft_cap=*/0.0F, tensors.scale, /*rope_scale=*/1.0F,
                /*rope_theta=*/1.0F);
  params.request_indices = At<int32_t>(workspace.ints, plan.request_indices_offset);
  params.qo_tile_indices = At<int32_t>(workspace.ints, plan.qo_tile_indices_offset);
  params.kv_tile_indices = At<int32_t>(workspace.ints, plan.kv_tile_indices_offset);
  params.o_indptr = At<int32_t>(workspace.ints, plan.o_indptr_offset);
  params.kv_chunk_size_ptr = At<int32_t>(workspace.ints, plan.kv_chunk_size_ptr_offset);
  params.max_total_num_rows = static_cast<uint32_t>(plan.total_num_rows);
  params.padded_batch_size = static_cast<uint32_t>(plan.padded_batch_size);
  Element* partial_values = nullptr;
  float* partial_sums = nullptr;
  if (plan.split_kv) {
    params.merge_indptr = At<int32_t>(workspace.ints, plan.merge_indptr_offset);
    partial_values = At<Element>(workspace.floats, plan.v_offset);
    partial_sums = At<float>(workspace.floats, plan.s_offset);
  }
  const auto tile = static_cast<uint32_t>(plan.cta_tile_q);
  return Guarded("FlashInfer's prefill", [&] {
    switch (shape.head_dim) {
      case 64:
        return RunPrefill<64>(tile, params, partial_values, partial_sums, stream);
      case 128:
        return RunPrefill<128>(tile, params, partial_values, partial_sums, stream);
      default:
        return RunPrefill<256>(tile, params, partial_values, partial_sums, stream);
    }
  });
}

}  // namespace nibble::kernels::cuda::flashinfer_prefill
