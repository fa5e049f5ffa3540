// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/flashinfer_attention.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/cuda/buffer.h"
#include "base/cuda/stream.h"
#include "kernels/attention/cuda/flashinfer_prefill.h"
#include "kernels/attention/cuda/nibble_attention.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMinTile = 16;  // rows; of the library's 16, 64 and 128
constexpr int64_t kMaxTile = 128;
constexpr int64_t kSlackBytes = 4096;  // alignment of the parts of a workspace

class FlashInferAttention : public DeviceAttention {
 public:
  FlashInferAttention(const AttentionShape& shape, const AttentionLimits& limits,
                      std::unique_ptr<DeviceAttention> nibble, bool takes_decode)
      : shape_(shape),
        limits_(limits),
        prefill_shape_{.num_heads = shape.num_heads,
                       .num_kv_heads = shape.num_kv_heads,
                       .head_dim = shape.head_dim,
                       .block_size = shape.block_size},
        nibble_(std::move(nibble)),
        takes_decode_(takes_decode) {}

  absl::Status Allocate(int64_t num_sms) {
    // A step is split only as far as two blocks for each multiprocessor go; unsplit it has as many
    // as its tiles.
    const int64_t split_blocks = 2 * num_sms / shape_.num_kv_heads + 1;
    const int64_t group = shape_.num_heads / shape_.num_kv_heads;
    const int64_t tiles = limits_.max_tokens * group / kMinTile + limits_.max_seqs;
    const int64_t float_bytes =
        shape_.num_kv_heads * split_blocks * kMaxTile * (shape_.head_dim + 1) * 4 + kSlackBytes;
    const int64_t int_bytes =
        (3 * std::max(tiles, split_blocks) + limits_.max_seqs + limits_.max_tokens + 2) * 4 +
        kSlackBytes;
    const int64_t step_ints =
        3 * limits_.max_seqs + 2 + limits_.max_seqs * limits_.max_blocks_per_seq;
    NIBBLE_ASSIGN_OR_RETURN(floats_,
                            gpu::DeviceBuffer<char>::Create(static_cast<size_t>(float_bytes)));
    NIBBLE_ASSIGN_OR_RETURN(ints_, gpu::DeviceBuffer<char>::Create(static_cast<size_t>(int_bytes)));
    NIBBLE_ASSIGN_OR_RETURN(pinned_,
                            gpu::PinnedBuffer<char>::Create(static_cast<size_t>(int_bytes)));
    NIBBLE_ASSIGN_OR_RETURN(staged_step_,
                            gpu::PinnedBuffer<int32_t>::Create(static_cast<size_t>(step_ints)));
    NIBBLE_ASSIGN_OR_RETURN(step_,
                            gpu::DeviceBuffer<int32_t>::Create(static_cast<size_t>(step_ints)));
    NIBBLE_ASSIGN_OR_RETURN(copied_, gpu::Event::Create());
    return absl::OkStatus();
  }

  std::string name() const override { return "flashinfer"; }

  absl::Status Plan(const AttentionStep& step, cudaStream_t stream) override {
    // Layers with a window are kNibble's, so every step is planned for it; this checks the step.
    NIBBLE_RETURN_IF_ERROR(nibble_->Plan(step, stream));
    has_plan_ = false;
    const int64_t least_tokens = takes_decode_ ? 1 : 2;
    bool has_work = false;
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      has_work |= step.query_start[seq + 1] - step.query_start[seq] >= least_tokens;
    }
    if (step.graph_seqs != 0 || !has_work) return absl::OkStatus();
    NIBBLE_RETURN_IF_ERROR(copied_.Synchronize());
    const flashinfer_prefill::Step staged = Stage(step);
    NIBBLE_RETURN_IF_ERROR(gpu::CopyToDevice(step_.data(), staged_step_.data(),
                                             static_cast<size_t>(num_staged_) * sizeof(int32_t),
                                             stream));
    NIBBLE_RETURN_IF_ERROR(plan_.Make(prefill_shape_, staged, Workspace(), stream));
    has_plan_ = true;
    return copied_.Record(stream);
  }

  absl::Status Run(const KvCacheView& cache, const AttentionArgs& args,
                   cudaStream_t stream) override {
    const int64_t columns = shape_.num_heads * shape_.head_dim;
    const bool window_hides = args.sliding_window != 0 && args.sliding_window < max_context_;
    // The library writes rows without gaps, and knows 32-bit strides.
    if (!has_plan_ || window_hides || args.out.stride != columns ||
        args.q.stride > std::numeric_limits<int32_t>::max()) {
      return nibble_->Run(cache, args, stream);
    }
    NIBBLE_RETURN_IF_ERROR(CheckAttentionArgs(shape_, cache, args));
    if (max_block_ >= cache.num_blocks) {
      return InvalidArgument("attention: the step has block {}, the limit is {}", max_block_,
                             cache.num_blocks - 1);
    }
    return plan_.Run(prefill_shape_, device_step_, Workspace(),
                     {.q = args.q.data,
                      .q_stride = args.q.stride,
                      .keys = cache.keys,
                      .values = cache.values,
                      .out = args.out.data,
                      .scale = args.scale},
                     stream);
  }

 private:
  flashinfer_prefill::Workspace Workspace() const {
    return {.floats = floats_.data(),
            .float_bytes = floats_.size_bytes(),
            .ints = ints_.data(),
            .pinned = pinned_.data(),
            .int_bytes = ints_.size_bytes()};
  }

  // The step without sequences that have nothing new, as the library wants it: starts of queries,
  // starts of pages, lengths of last pages, pages.
  flashinfer_prefill::Step Stage(const AttentionStep& step) {
    int32_t num_seqs = 0;
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      num_seqs += step.query_start[seq + 1] > step.query_start[seq] ? 1 : 0;
    }
    int32_t* const query_start = staged_step_.data();
    int32_t* const pages_start = query_start + num_seqs + 1;
    int32_t* const last_page_lens = pages_start + num_seqs + 1;
    int32_t* const pages = last_page_lens + num_seqs;
    const auto block_size = static_cast<int32_t>(shape_.block_size);
    int32_t at = 0;
    query_start[0] = 0;
    pages_start[0] = 0;
    max_block_ = -1;
    max_context_ = 0;
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      if (step.query_start[seq + 1] == step.query_start[seq]) continue;
      const int32_t context = step.context_lens[seq];
      const int32_t num_blocks = (context - 1) / block_size + 1;
      const int32_t* const table = step.block_tables + seq * step.max_blocks_per_seq;
      std::copy_n(table, num_blocks, pages + pages_start[at]);
      max_block_ = std::max(max_block_, *std::max_element(table, table + num_blocks));
      max_context_ = std::max<int64_t>(max_context_, context);
      query_start[at + 1] = step.query_start[seq + 1];
      pages_start[at + 1] = pages_start[at] + num_blocks;
      last_page_lens[at] = context - (num_blocks - 1) * block_size;
      ++at;
    }
    num_staged_ = pages - query_start + pages_start[num_seqs];
    device_step_ = {.query_start = step_.data(),
                    .pages_start = step_.data() + (pages_start - query_start),
                    .pages = step_.data() + (pages - query_start),
                    .last_page_lens = step_.data() + (last_page_lens - query_start)};
    return {.num_seqs = num_seqs,
            .num_tokens = query_start[num_seqs],
            .query_start = query_start,
            .pages_start = pages_start};
  }

  const AttentionShape shape_;
  const AttentionLimits limits_;
  const flashinfer_prefill::Shape prefill_shape_;
  const std::unique_ptr<DeviceAttention> nibble_;
  const bool takes_decode_;
  gpu::DeviceBuffer<char> floats_;
  gpu::DeviceBuffer<char> ints_;
  gpu::PinnedBuffer<char> pinned_;
  gpu::PinnedBuffer<int32_t> staged_step_;
  gpu::DeviceBuffer<int32_t> step_;
  gpu::Event copied_;
  flashinfer_prefill::Plan plan_;
  // Of the step that was planned last.
  bool has_plan_ = false;
  int64_t num_staged_ = 0;
  int64_t max_context_ = 0;
  int32_t max_block_ = -1;
  flashinfer_prefill::DeviceStep device_step_;
};

}  // namespace

absl::Status CheckFlashInferShape(const AttentionShape& shape, const gpu::DeviceCaps& caps) {
  if (shape.activation != DType::kBf16 || shape.kv_dtype != DType::kBf16) {
    return Unimplemented("attention: FlashInfer is built for bfloat16, not {} with a cache of {}",
                         ToString(shape.activation), ToString(shape.kv_dtype));
  }
  if (shape.head_dim != 64 && shape.head_dim != 128 && shape.head_dim != 256) {
    return Unimplemented("attention: head_dim is {}, FlashInfer is built for 64, 128 and 256",
                         shape.head_dim);
  }
  constexpr int kMinSm = 80;
  if (caps.sm < kMinSm) {
    return Unimplemented("attention: the device is sm_{}, FlashInfer's least is {}", caps.sm,
                         kMinSm);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceAttention>> CreateFlashInferAttention(
    const AttentionShape& shape, const AttentionLimits& limits, const gpu::DeviceCaps& caps,
    std::unique_ptr<DeviceAttention> nibble, bool takes_decode) {
  auto attention =
      std::make_unique<FlashInferAttention>(shape, limits, std::move(nibble), takes_decode);
  NIBBLE_RETURN_IF_ERROR(attention->Allocate(caps.num_sms));
  return attention;
}

}  // namespace nibble::kernels::cuda
