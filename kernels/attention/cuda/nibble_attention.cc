// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/nibble_attention.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/cuda/buffer.h"
#include "base/cuda/stream.h"
#include "kernels/attention/cuda/attention_kernels.h"
#include "kernels/attention/cuda/attention_plan.h"

namespace nibble::kernels::cuda {
namespace {

// Units for each multiprocessor: a few waves of blocks, so that the last one is a small part.
constexpr int64_t kUnitsPerSm = 4;
// Of states of split tasks. What does not fit is not split.
constexpr int64_t kMaxStateBytes = int64_t{64} << 20;
constexpr float kLog2E = 0x1.715476p+0F;

// Which kernels a shape has, and how they want work to be cut.
struct Kernels {
  AttentionLauncher launch[2] = {nullptr, nullptr};  // narrow, wide
  int64_t segment_keys = 0;
  int64_t narrow_rows = 0;
  int64_t wide_rows = 0;
};

absl::StatusOr<Kernels> ChooseKernels(const AttentionShape& shape, const gpu::DeviceCaps& caps) {
  if (shape.activation == DType::kBf16 && shape.kv_dtype != DType::kF32) {
    for (const MmaInstance& instance :
         {MmaAttention64(), MmaAttention96(), MmaAttention128(), MmaAttention256()}) {
      if (instance.head_dim != shape.head_dim || instance.shared_bytes > caps.max_shared_bytes) {
        continue;
      }
      const auto& launch = shape.kv_dtype == DType::kI8 ? instance.int8 : instance.bf16;
      return Kernels{.launch = {launch[0], launch[1]},
                     .segment_keys = kMmaSegmentKeys,
                     .narrow_rows = kMmaNarrowRows,
                     .wide_rows = launch[1] != nullptr ? kMmaWideRows : 0};
    }
  }
  const int64_t shared_bytes = PlainAttentionSharedBytes(shape.head_dim);
  if (shared_bytes > caps.max_shared_bytes) {
    return Unimplemented("attention: head_dim {} takes {} bytes of shared memory, the limit is {}",
                         shape.head_dim, shared_bytes, caps.max_shared_bytes);
  }
  return Kernels{.launch = {PlainAttentionLauncher(shape.kv_dtype, shape.activation), nullptr},
                 .segment_keys = kPlainSegmentKeys,
                 .narrow_rows = kPlainRows};
}

class NibbleAttention : public DeviceAttention {
 public:
  NibbleAttention(const AttentionShape& shape, const Kernels& kernels, AttentionPlanner planner,
                  int64_t num_sms)
      : shape_(shape), kernels_(kernels), planner_(std::move(planner)), num_sms_(num_sms) {}

  absl::Status Allocate(int64_t max_state_rows) {
    const auto ints = static_cast<size_t>(planner_.max_ints());
    const auto states = static_cast<size_t>(max_state_rows * shape_.num_kv_heads);
    NIBBLE_ASSIGN_OR_RETURN(staged_, gpu::PinnedBuffer<int32_t>::Create(ints));
    NIBBLE_ASSIGN_OR_RETURN(plan_, gpu::DeviceBuffer<int32_t>::Create(ints));
    NIBBLE_ASSIGN_OR_RETURN(
        states_, gpu::DeviceBuffer<float>::Create(states * static_cast<size_t>(shape_.head_dim)));
    NIBBLE_ASSIGN_OR_RETURN(state_sums_, gpu::DeviceBuffer<float2>::Create(states));
    NIBBLE_ASSIGN_OR_RETURN(num_done_, gpu::DeviceBuffer<int32_t>::Create(static_cast<size_t>(
                                           planner_.max_tasks() * shape_.num_kv_heads)));
    NIBBLE_ASSIGN_OR_RETURN(copied_, gpu::Event::Create());
    // Kernels leave it zero.
    NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
    NIBBLE_RETURN_IF_ERROR(gpu::ZeroDevice(num_done_.data(), num_done_.size_bytes(), stream.get()));
    return stream.Synchronize();
  }

  std::string name() const override { return "nibble"; }

  absl::Status Plan(const AttentionStep& step, cudaStream_t stream) override {
    // The copy of the plan before this one has long been done, if callers keep to the contract.
    NIBBLE_RETURN_IF_ERROR(copied_.Synchronize());
    NIBBLE_ASSIGN_OR_RETURN(summary_, planner_.Write(step, staged_.data()));
    graph_seqs_ = step.graph_seqs;
    NIBBLE_RETURN_IF_ERROR(
        gpu::CopyToDevice(plan_.data(), staged_.data(),
                          static_cast<size_t>(summary_.num_ints) * sizeof(int32_t), stream));
    return copied_.Record(stream);
  }

  absl::Status Run(const KvCacheView& cache, const AttentionArgs& args,
                   cudaStream_t stream) override {
    if (summary_.num_tokens == 0) return absl::OkStatus();
    NIBBLE_RETURN_IF_ERROR(CheckAttentionArgs(shape_, cache, args));
    if (summary_.max_block >= cache.num_blocks) {
      return InvalidArgument("attention: the step has block {}, the limit is {}",
                             summary_.max_block, cache.num_blocks - 1);
    }
    AttentionParams params{.plan = plan_.data(),
                           .num_done = num_done_.data(),
                           .states = states_.data(),
                           .state_sums = state_sums_.data(),
                           .keys = cache.keys,
                           .values = cache.values,
                           .key_scales = cache.key_scales,
                           .value_scales = cache.value_scales,
                           .q = args.q.data,
                           .out = args.out.data,
                           .q_stride = args.q.stride,
                           .out_stride = args.out.stride,
                           .num_kv_heads = static_cast<int32_t>(shape_.num_kv_heads),
                           .group = static_cast<int32_t>(shape_.num_heads / shape_.num_kv_heads),
                           .block_size = static_cast<int32_t>(shape_.block_size),
                           .head_dim = static_cast<int32_t>(shape_.head_dim),
                           .window = static_cast<int32_t>(args.sliding_window),
                           .scale = args.scale,
                           .scale_log2 = args.scale * kLog2E};
    for (size_t kind = 0; kind < 2; ++kind) {
      const int64_t num_blocks = NumBlocks(kind);
      if (num_blocks == 0) continue;
      params.is_wide = static_cast<int32_t>(kind);
      NIBBLE_RETURN_IF_ERROR(kernels_.launch[kind](params, num_blocks, stream));
    }
    return absl::OkStatus();
  }

 private:
  // Of a launch. What a graph captures must not follow the step; its units are all narrow.
  int64_t NumBlocks(size_t kind) const {
    if (graph_seqs_ == 0) {
      constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max();
      return std::min(summary_.num_units[kind] * shape_.num_kv_heads, kMaxBlocks);
    }
    if (kind == 1) return 0;
    return std::min(planner_.MaxGraphUnits(graph_seqs_) * shape_.num_kv_heads,
                    kUnitsPerSm * num_sms_);
  }

  const AttentionShape shape_;
  const Kernels kernels_;
  AttentionPlanner planner_;
  const int64_t num_sms_;
  gpu::PinnedBuffer<int32_t> staged_;
  gpu::Event copied_;
  gpu::DeviceBuffer<int32_t> plan_;
  gpu::DeviceBuffer<float> states_;
  gpu::DeviceBuffer<float2> state_sums_;
  gpu::DeviceBuffer<int32_t> num_done_;
  // Of the step that was planned last.
  AttentionPlanSummary summary_;
  int64_t graph_seqs_ = 0;
};

absl::Status CheckMatrix(const DeviceMatrix& matrix, const AttentionShape& shape,
                         const char* name) {
  if (matrix.dtype != shape.activation) {
    return InvalidArgument("attention: {} is {}, the shape says {}", name, ToString(matrix.dtype),
                           ToString(shape.activation));
  }
  const int64_t columns = shape.num_heads * shape.head_dim;
  const auto bytes = matrix.stride * static_cast<int64_t>(SizeOf(matrix.dtype));
  if (matrix.stride < columns || bytes % 16 != 0) {
    return InvalidArgument(
        "attention: {} has a stride of {} elements, the least is {}, in multiples of 16 bytes",
        name, matrix.stride, columns);
  }
  if (matrix.data == nullptr || reinterpret_cast<uintptr_t>(matrix.data) % 16 != 0) {
    return InvalidArgument("attention: {} is not aligned to 16 bytes", name);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckAttentionArgs(const AttentionShape& shape, const KvCacheView& cache,
                                const AttentionArgs& args) {
  if (cache.dtype != shape.kv_dtype || cache.num_kv_heads != shape.num_kv_heads ||
      cache.block_size != shape.block_size || cache.head_dim != shape.head_dim) {
    return InvalidArgument(
        "attention: the cache is {} of {} KV heads, blocks of {} and head_dim {}, the shape says "
        "{}, {}, {} and {}",
        ToString(cache.dtype), cache.num_kv_heads, cache.block_size, cache.head_dim,
        ToString(shape.kv_dtype), shape.num_kv_heads, shape.block_size, shape.head_dim);
  }
  const bool scaled = cache.key_scales != nullptr && cache.value_scales != nullptr;
  if (scaled != (cache.dtype == DType::kI8)) {
    return InvalidArgument("attention: a cache of {} {} scales", ToString(cache.dtype),
                           scaled ? "with" : "without");
  }
  if (args.sliding_window < 0 || args.sliding_window > std::numeric_limits<int32_t>::max()) {
    return InvalidArgument("attention: sliding_window is {}, the limits are 0 and {}",
                           args.sliding_window, std::numeric_limits<int32_t>::max());
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(args.q, shape, "q"));
  return CheckMatrix(args.out, shape, "out");
}

absl::StatusOr<std::unique_ptr<DeviceAttention>> CreateNibbleAttention(
    const AttentionShape& shape, const AttentionLimits& limits, const gpu::DeviceCaps& caps) {
  NIBBLE_ASSIGN_OR_RETURN(const Kernels kernels, ChooseKernels(shape, caps));
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t row_bytes =
      shape.num_kv_heads * (shape.head_dim + 2) * static_cast<int64_t>(sizeof(float));
  AttentionPlanConfig config{.group = group,
                             .num_kv_heads = shape.num_kv_heads,
                             .block_size = shape.block_size,
                             .limits = limits,
                             .segment_keys = kernels.segment_keys,
                             .narrow_rows = kernels.narrow_rows,
                             .wide_rows = kernels.wide_rows,
                             .target_units = kUnitsPerSm * caps.num_sms};
  // All that the limits could need, in doubles as they are not checked yet.
  const double positions =
      static_cast<double>(limits.max_blocks_per_seq) * static_cast<double>(shape.block_size);
  const double state_rows = static_cast<double>(limits.max_tokens) * static_cast<double>(group) *
                            (positions / static_cast<double>(config.segment_keys) + 1.0);
  const int64_t most_rows = kMaxStateBytes / row_bytes;
  config.max_state_rows = state_rows < static_cast<double>(most_rows)
                              ? std::max<int64_t>(0, static_cast<int64_t>(state_rows))
                              : most_rows;
  NIBBLE_ASSIGN_OR_RETURN(AttentionPlanner planner, AttentionPlanner::Create(config));
  auto attention =
      std::make_unique<NibbleAttention>(shape, kernels, std::move(planner), caps.num_sms);
  NIBBLE_RETURN_IF_ERROR(attention->Allocate(config.max_state_rows));
  return attention;
}

}  // namespace nibble::kernels::cuda
