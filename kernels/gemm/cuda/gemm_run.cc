// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Checks of a call, and which launch it becomes.

#include "kernels/gemm/cuda/gemm_run.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/gemm/cuda/cublaslt.h"
#include "kernels/gemm/cuda/gemm_kernels.h"
#include "kernels/gemm/cuda/gemm_plan.h"
#include "kernels/gemm/cuda/wgmma_gemm.h"
#include "kernels/gemm/panel_loops.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max() / 2;
constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max();

bool IsAligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;  // pieces of 16 bytes
}

absl::Status CheckMatrix(std::string_view name, const void* data, DType dtype, int64_t stride,
                         int64_t columns) {
  const auto element = static_cast<int64_t>(SizeOf(dtype));
  if (data == nullptr || !IsAligned(data)) {
    return InvalidArgument("gemm: {} is at {:#x}, not at a multiple of 16 bytes", name,
                           reinterpret_cast<uintptr_t>(data));
  }
  if (stride < columns || stride * element % 16 != 0) {
    return InvalidArgument(
        "gemm: rows of {} are {} elements apart, must be {} or more and a multiple of 16 bytes",
        name, stride, columns);
  }
  return absl::OkStatus();
}

absl::Status CheckCall(const GemmDesc& desc, int64_t rows, const DeviceMatrix& a,
                       const QuantizedRows& a8, const DeviceMatrix& d) {
  if (rows < 0 || rows > kMaxRows) {
    return InvalidArgument("gemm: {} rows, the range is 0..{}", rows, kMaxRows);
  }
  const bool f16 = desc.format == WeightFormat::kDense && desc.storage == DType::kF16;
  if (d.dtype != DType::kF32 && d.dtype != DType::kBf16 && !(f16 && d.dtype == DType::kF16)) {
    return InvalidArgument("gemm: d is {}, {} writes f32 or {}", ToString(d.dtype), ToString(desc),
                           f16 ? "f16" : "bf16");
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("d", d.data, d.dtype, d.stride, desc.n));
  if (TakesInt8(desc.format)) {
    if (a8.scales == nullptr) return InvalidArgument("gemm: a8 has no scales");
    return CheckMatrix("a8", a8.values, DType::kI8, a8.stride, desc.k);
  }
  if (a.dtype != desc.storage) {
    return InvalidArgument("gemm: a is {}, {} takes {}", ToString(a.dtype), ToString(desc),
                           ToString(desc.storage));
  }
  return CheckMatrix("a", a.data, a.dtype, a.stride, desc.k);
}

GemmKernelArgs MakeArgs(const GemmDesc& desc, int64_t rows, const DeviceMatrix& a,
                        const QuantizedRows& a8, const DeviceMatrix& d, const GemmPlan& plan) {
  const WeightLayout layout = MakeWeightLayout(desc);
  const bool int8 = TakesInt8(desc.format);
  const int64_t element = int8 ? 1 : static_cast<int64_t>(SizeOf(desc.storage));
  return {
      .weight = {},
      .n = static_cast<int>(desc.n),
      .num_units = static_cast<int>(layout.padded_n / kUnitChannels),
      .num_stages = static_cast<int>(layout.padded_k * element / kStageBytes),
      .group_shift = layout.group_shift,
      .num_scale_groups = static_cast<int>(layout.num_groups),
      .channel_offset = layout.channel_offset,
      .integer_offset = layout.integer_offset,
      .a = int8 ? reinterpret_cast<const uint8_t*>(a8.values) : static_cast<const uint8_t*>(a.data),
      .a_stride_bytes = (int8 ? a8.stride : a.stride) * element,
      .a_row_bytes = desc.k * element,
      .a_scales = a8.scales,
      .rows = static_cast<int>(rows),
      .bias = nullptr,
      .d = d,
      .k_parts = plan.k_parts,
      .parts_shift = std::countr_zero(static_cast<unsigned>(plan.k_parts)),
      .split_k = plan.split_k,
      .partials = nullptr,
      .token_tiles = static_cast<int>(CeilDiv(rows, plan.tile_n)),
      .entries = nullptr,
      .offsets = nullptr,
      .a_rows = nullptr,
      .num_groups = 0};
}

absl::Status LaunchForm(const GemmDesc& desc, const GemmLaunch& launch) {
  if (launch.plan.kernel == GemmKernel::kWgmma) return LaunchWgmma(desc, launch);
  const int64_t blocks = CeilDiv(desc.n, launch.plan.tile_m) * launch.args.token_tiles;
  if (blocks > kMaxBlocks) {
    return InvalidArgument("gemm: {} with {} rows takes {} blocks, the limit is {}", ToString(desc),
                           launch.args.rows, blocks, kMaxBlocks);
  }
  if (launch.plan.kernel == GemmKernel::kFloat) return LaunchFloat(launch);
  const bool skinny = launch.plan.kernel == GemmKernel::kSkinny;
  switch (FormOf(desc)) {
    case Form::kFolded:
      return skinny ? LaunchSkinnyFolded(launch) : LaunchTiledFolded(launch);
    case Form::kInteger:
      return skinny ? LaunchSkinnyInteger(launch) : LaunchTiledInteger(launch);
    case Form::kFloatScales:
      return skinny ? LaunchSkinnyFloatScales(launch) : LaunchTiledFloatScales(launch);
    case Form::kInt8:
      return skinny ? LaunchSkinnyInt8(launch) : LaunchTiledInt8(launch);
    case Form::kBf16:
      return skinny ? LaunchSkinnyBf16(launch) : LaunchTiledBf16(launch);
    case Form::kF16:
      return skinny ? LaunchSkinnyF16(launch) : LaunchTiledF16(launch);
  }
  return Internal("gemm: no form for {}", ToString(desc));
}

absl::Status RunCublasLt(const DeviceWeight& weight, const DeviceGemmArgs& args,
                         const GemmContext& context, cudaStream_t stream) {
  if (context.cublaslt == nullptr) {
    return InvalidArgument("gemm: a plan for cuBLASLt, which was not opened");
  }
  const GemmDesc& desc = weight.desc();
  return MultiplyDense(context.cublaslt,
                       {.m = args.m,
                        .n = desc.n,
                        .k = desc.k,
                        .type = desc.storage,
                        .a = args.a.data,
                        .a_stride = args.a.stride,
                        .b = weight.codes(),
                        .b_stride = weight.padded_k(),
                        .d_type = args.d.dtype,
                        .d = args.d.data,
                        .d_stride = args.d.stride},
                       args.bias, context.workspace, context.workspace_bytes, stream);
}

}  // namespace

absl::Status RunPlanned(const DeviceWeight& weight, const DeviceGemmArgs& args,
                        const GemmPlan& plan, const GemmContext& context, cudaStream_t stream) {
  const GemmDesc& desc = weight.desc();
  NIBBLE_RETURN_IF_ERROR(CheckCall(desc, args.m, args.a, args.a8, args.d));
  if (args.m == 0 || desc.n == 0) return absl::OkStatus();
  if (plan.workspace_bytes > context.workspace_bytes) {
    return InvalidArgument("gemm: {} with {} rows takes a workspace of {} bytes, there are {}",
                           ToString(desc), args.m, plan.workspace_bytes, context.workspace_bytes);
  }
  if (plan.kernel == GemmKernel::kCublasLt) return RunCublasLt(weight, args, context, stream);
  GemmKernelArgs kernel_args = MakeArgs(desc, args.m, args.a, args.a8, args.d, plan);
  kernel_args.weight = {weight.codes(), weight.scales(), weight.zeros()};
  kernel_args.bias = args.bias;
  kernel_args.partials = context.workspace;
  return LaunchForm(desc, {kernel_args, plan, stream});
}

absl::Status RunGroupedPlanned(const GroupedWeights& weights, const DeviceGroupedGemmArgs& args,
                               const GemmPlan& plan, const GemmContext& /*context*/,
                               cudaStream_t stream) {
  const GemmDesc& desc = weights.desc();
  NIBBLE_RETURN_IF_ERROR(CheckCall(desc, args.max_rows, args.a, args.a8, args.d));
  if (args.offsets == nullptr) return InvalidArgument("gemm: a grouped call without offsets");
  if (args.max_rows == 0 || desc.n == 0) return absl::OkStatus();
  GemmKernelArgs kernel_args = MakeArgs(desc, args.max_rows, args.a, args.a8, args.d, plan);
  kernel_args.entries = weights.entries();
  kernel_args.offsets = args.offsets;
  kernel_args.a_rows = args.a_rows;
  kernel_args.num_groups = static_cast<int>(weights.num_groups());
  // Every group with rows has at most one tile that is not full.
  kernel_args.token_tiles = static_cast<int>(std::min(
      args.max_rows, args.max_rows / plan.tile_n + std::min(args.max_rows, weights.num_groups())));
  return LaunchForm(desc, {kernel_args, plan, stream});
}

absl::Status Run(const DeviceWeight& weight, const DeviceGemmArgs& args, const GemmContext& context,
                 cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Supports(weight.desc(), context.caps));
  // It does not multiply f16 into bf16.
  const bool has_cublaslt =
      context.cublaslt != nullptr && LtTakes(weight.desc().storage, args.d.dtype);
  const GemmPlan plan = Choose(weight.desc(), args.m, context.caps, has_cublaslt);
  return RunPlanned(weight, args, plan, context, stream);
}

absl::Status RunGrouped(const GroupedWeights& weights, const DeviceGroupedGemmArgs& args,
                        const GemmContext& context, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Supports(weights.desc(), context.caps));
  const GemmPlan plan =
      ChooseGrouped(weights.desc(), weights.num_groups(), args.max_rows, context.caps);
  return RunGroupedPlanned(weights, args, plan, context, stream);
}

}  // namespace nibble::kernels::cuda
