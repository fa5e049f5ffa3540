// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The memory of a CudaDecoderModel's steps.

#include <algorithm>

#include "comm/gpu/p2p_link.h"
#include "comm/gpu/p2p_plan.h"
#include "engine/model/cuda/cuda_decoder.h"
#include "engine/model/cuda/device_memory.h"
#include "kernels/activation/cuda/silu_mul.h"
#include "kernels/rope/rope.h"
#include "kernels/sampling/cuda/sample.h"

namespace nibble::engine {
namespace {

constexpr int64_t kRowPadding = 64;
constexpr int64_t kLogitsPadding = 8;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int64_t RowStrideBytes(int64_t columns, DType dtype) {
  return PaddedStride(columns, dtype) * static_cast<int64_t>(SizeOf(dtype));
}

kernels::cuda::AttentionBackend ToBackend(CudaAttention attention) {
  switch (attention) {
    case CudaAttention::kNibble:
      return kernels::cuda::AttentionBackend::kNibble;
    case CudaAttention::kFlashInfer:
      return kernels::cuda::AttentionBackend::kFlashInfer;
    case CudaAttention::kAuto:
      break;
  }
  return kernels::cuda::AttentionBackend::kAuto;
}

}  // namespace

// The driver's part of graphs is not known, nor NCCL's memory: not all of a device is to be used.
KvMemory CudaDecoderModel::kv_memory() const {
  const auto guard = gpu::DeviceGuard::Create(caps_.index);
  const auto memory = gpu::GetDeviceMemory();
  if (!guard.ok() || !memory.ok()) return {.available_bytes = 0, .is_own = true};
  const auto usable =
      static_cast<int64_t>(static_cast<double>(memory->total_bytes) * options_.memory_utilization);
  int64_t used = memory->total_bytes - memory->free_bytes;
  if (place_.size > 1 && communicator_ == nullptr) {
    used += comm::P2pMemoryBytes(
        comm::P2pRegionBytes(place_.size, row_capacity_ * config_.hidden_size), 2);
  }
  return {.available_bytes = std::min(usable - used, memory->free_bytes),
          .is_own = true,
          .total_bytes = memory->total_bytes};
}

absl::Status CudaDecoderModel::Reserve(const StepLimits& limits, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckStepLimits(config_, limits));
  NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(caps_.index));
  const int64_t rows = std::max(limits.max_tokens, limits.max_seqs);
  const int64_t samples = std::max(limits.max_samples, limits.max_seqs);
  NIBBLE_RETURN_IF_ERROR(ReserveRows(rows, samples));
  NIBBLE_RETURN_IF_ERROR(ReserveLogits(samples));
  NIBBLE_RETURN_IF_ERROR(ReservePositions(limits.max_positions, pool));
  return ReserveAttention(limits);
}

int64_t CudaDecoderModel::GemmWorkspaceBytes(int64_t num_rows, int64_t num_samples) const {
  const bool has_cublaslt = gemm_.cublaslt != nullptr;
  int64_t bytes = moe_ == nullptr ? 0 : moe_->WorkspaceBytes(num_rows, caps_, has_cublaslt);
  for (const Layer& layer : layers_) {
    for (const DeviceLinear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      bytes = std::max(bytes, linear->WorkspaceBytes(num_rows, caps_, has_cublaslt));
    }
  }
  return std::max(bytes, lm_head_.WorkspaceBytes(num_samples, caps_, has_cublaslt));
}

int64_t CudaDecoderModel::StepBytes(const StepLimits& limits) const {
  const int64_t rows = RoundUp(std::max(limits.max_tokens, limits.max_seqs), kRowPadding);
  const int64_t num_samples = std::max(limits.max_samples, limits.max_seqs);
  const int64_t samples = std::min(rows, RoundUp(num_samples, kRowPadding));
  return RowBytes(rows, samples) + LogitsBytes(RoundUp(num_samples, kLogitsPadding)) +
         PositionBytes(limits.max_positions);
}

// REQUIRES padded numbers, as the next.
int64_t CudaDecoderModel::RowBytes(int64_t rows, int64_t samples) const {
  const auto row_bytes = [this](int64_t columns) { return RowStrideBytes(columns, activation_); };
  const int64_t hidden = config_.hidden_size;
  const int64_t max_k = std::max({hidden, q_size_, dense_intermediate_size_});
  return rows * (hidden * 4 + row_bytes(hidden) + row_bytes(qkv_size_) + row_bytes(q_size_) +
                 row_bytes(2 * dense_intermediate_size_) +
                 DeviceActivations::BytesPerRow(max_k, reorders_)) +
         samples * (hidden * 4 + row_bytes(q_size_)) + GemmWorkspaceBytes(rows, samples) +
         kernels::cuda::SiluMulWorkspaceBytes(rows) + StepStaging::BytesFor(rows, samples) +
         (moe_ == nullptr ? 0 : moe_->BytesFor(rows));
}

int64_t CudaDecoderModel::LogitsBytes(int64_t samples) const {
  if (!place_.is_last_stage()) return 0;
  const int64_t all_stride = PaddedStride(config_.vocab_size, DType::kF32);
  const bool gathers = place_.size > 1;
  const int64_t work =
      has_logits() ? kernels::cuda::SampleWorkspaceBytes(samples, config_.vocab_size) : 0;
  return work + samples * 4 *
                    (logits_stride_ + (gathers ? place_.size * logits_stride_ : 0) +
                     (gathers && has_logits() ? all_stride : 0));
}

int64_t CudaDecoderModel::PositionBytes(int64_t num_positions) const {
  return num_positions * config_.rope.rotary_dim / 2 * 2 * 4;
}

// So that what is free is what the larger ones can have.
void CudaDecoderModel::ReleaseRows() {
  x_ = {}, kept_x_ = {};
  for (auto* buffer : {&delta_, &qkv_, &attention_, &kept_attention_, &gate_up_, &silu_workspace_,
                       &gemm_workspace_}) {
    *buffer = {};
  }
  activations_ = {};
  staging_ = {};
  stage_rows_ = {};
  if (moe_ != nullptr) moe_->Release();
}

absl::Status CudaDecoderModel::ReserveRows(int64_t num_rows, int64_t num_samples) {
  if (num_rows <= row_capacity_ && num_samples <= sample_capacity_) return absl::OkStatus();
  const int64_t rows = RoundUp(std::max(num_rows, row_capacity_), kRowPadding);
  // A padded step samples its padding too, and no step more than its rows.
  const int64_t samples =
      std::min(rows, RoundUp(std::max(num_samples, sample_capacity_), kRowPadding));
  const auto row_bytes = [this](int64_t columns) { return RowStrideBytes(columns, activation_); };
  const int64_t hidden = config_.hidden_size;
  const int64_t gate_up = 2 * dense_intermediate_size_;
  const int64_t max_k = std::max({hidden, q_size_, dense_intermediate_size_});
  const int64_t workspace = GemmWorkspaceBytes(rows, samples);
  const int64_t silu_workspace = kernels::cuda::SiluMulWorkspaceBytes(rows);
  const int64_t bytes = RowBytes(rows, samples);
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());  // a chunk may be under way
  row_capacity_ = sample_capacity_ = 0;
  graphs_.clear();
  ReleaseRows();
  NIBBLE_RETURN_IF_ERROR(CheckDeviceMemory(bytes, fmt::format("a step of {} tokens", num_rows)));
  NIBBLE_RETURN_IF_ERROR(Retake(rows * hidden, &x_));
  NIBBLE_RETURN_IF_ERROR(Retake(samples * hidden, &kept_x_));
  NIBBLE_RETURN_IF_ERROR(Retake(rows * row_bytes(hidden), &delta_));
  NIBBLE_RETURN_IF_ERROR(Retake(rows * row_bytes(qkv_size_), &qkv_));
  NIBBLE_RETURN_IF_ERROR(Retake(rows * row_bytes(q_size_), &attention_));
  NIBBLE_RETURN_IF_ERROR(Retake(samples * row_bytes(q_size_), &kept_attention_));
  NIBBLE_RETURN_IF_ERROR(Retake(rows * row_bytes(gate_up), &gate_up_));
  NIBBLE_RETURN_IF_ERROR(RetakeZeroed(silu_workspace, stream_.get(), &silu_workspace_));
  NIBBLE_RETURN_IF_ERROR(Retake(workspace, &gemm_workspace_));
  gemm_.workspace = gemm_workspace_.data();
  gemm_.workspace_bytes = workspace;
  NIBBLE_ASSIGN_OR_RETURN(activations_, DeviceActivations::Create(rows, max_k, reorders_));
  NIBBLE_ASSIGN_OR_RETURN(staging_, StepStaging::Create(rows, samples));
  if (place_.num_stages > 1) NIBBLE_RETURN_IF_ERROR(Retake(rows * hidden, &stage_rows_));
  if (moe_ != nullptr) NIBBLE_RETURN_IF_ERROR(moe_->Allocate(rows, stream_.get()));
  row_capacity_ = rows;
  sample_capacity_ = samples;
  return absl::OkStatus();
}

absl::Status CudaDecoderModel::ReserveLogits(int64_t num_samples) {
  if (!place_.is_last_stage() ||
      num_samples * logits_stride_ <= static_cast<int64_t>(own_logits_.size())) {
    return absl::OkStatus();
  }
  const auto samples = RoundUp(num_samples, kLogitsPadding);
  const int64_t all_stride = PaddedStride(config_.vocab_size, DType::kF32);
  const bool gathers = place_.size > 1;
  const int64_t work =
      has_logits() ? kernels::cuda::SampleWorkspaceBytes(samples, config_.vocab_size) : 0;
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());  // a chunk may be under way
  graphs_.clear();
  own_logits_ = {}, gathered_ = {}, logits_ = {}, sample_workspace_ = {};
  NIBBLE_RETURN_IF_ERROR(
      CheckDeviceMemory(LogitsBytes(samples), fmt::format("{} rows of logits", num_samples)));
  if (gathers) NIBBLE_RETURN_IF_ERROR(Retake(place_.size * samples * logits_stride_, &gathered_));
  if (has_logits()) {
    if (gathers) NIBBLE_RETURN_IF_ERROR(Retake(samples * all_stride, &logits_));
    NIBBLE_RETURN_IF_ERROR(Retake(work, &sample_workspace_));
    NIBBLE_RETURN_IF_ERROR(Retake(samples, &tokens_));
    NIBBLE_RETURN_IF_ERROR(
        Retake(std::min(samples, kHostRows) * config_.vocab_size, &host_logits_));
    NIBBLE_RETURN_IF_ERROR(Retake(samples, &host_tokens_));
  }
  return Retake(samples * logits_stride_, &own_logits_);  // last: its size says what there is
}

absl::Status CudaDecoderModel::ReservePositions(int64_t num_positions, ThreadPool* pool) {
  if (num_positions <= position_capacity_) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());  // a chunk may be under way
  position_capacity_ = 0;
  graphs_.clear();
  rope_cos_ = {}, rope_sin_ = {};
  NIBBLE_RETURN_IF_ERROR(CheckDeviceMemory(
      PositionBytes(num_positions), fmt::format("the RoPE table of {} positions", num_positions)));
  const kernels::RopeTable table = kernels::MakeRopeTable(config_.rope, num_positions, pool);
  NIBBLE_ASSIGN_OR_RETURN(rope_cos_, gpu::Upload(table.cos, stream_.get()));
  NIBBLE_ASSIGN_OR_RETURN(rope_sin_, gpu::Upload(table.sin, stream_.get()));
  position_capacity_ = num_positions;
  return absl::OkStatus();
}

absl::Status CudaDecoderModel::ReserveAttention(const StepLimits& limits) {
  const StepLimits& had = attention_limits_;
  if (attention_op_ != nullptr && limits.max_tokens <= had.max_tokens &&
      limits.max_seqs <= had.max_seqs && limits.max_positions <= had.max_positions &&
      limits.block_size == had.block_size) {
    return absl::OkStatus();
  }
  if (limits.max_tokens == 0 || limits.max_positions == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());  // a chunk may be under way
  graphs_.clear();
  attention_op_ = nullptr;
  const StepLimits wanted = {.max_tokens = std::max(limits.max_tokens, had.max_tokens),
                             .max_positions = std::max(limits.max_positions, had.max_positions),
                             .max_samples = 0,
                             .max_seqs = std::max<int64_t>({limits.max_seqs, had.max_seqs, 1}),
                             .block_size = limits.block_size};
  NIBBLE_ASSIGN_OR_RETURN(
      attention_op_, kernels::cuda::DeviceAttention::Create(
                         {.num_heads = rank_config_.num_heads,
                          .num_kv_heads = rank_config_.num_kv_heads,
                          .head_dim = config_.head_dim,
                          .block_size = wanted.block_size,
                          .kv_dtype = weights_.kv_dtype,
                          .activation = activation_},
                         {.max_tokens = std::max(wanted.max_tokens, wanted.max_seqs),
                          .max_seqs = wanted.max_seqs,
                          .max_blocks_per_seq =
                              (wanted.max_positions + wanted.block_size - 1) / wanted.block_size},
                         caps_, ToBackend(options_.attention)));
  attention_limits_ = wanted;
  return absl::OkStatus();
}

// For callers that reserve nothing, as DecoderModel has it.
absl::Status CudaDecoderModel::GrowFor(const StepPlan& plan, const DeviceKvCache& cache,
                                       ThreadPool* pool) {
  constexpr int64_t kInitialPositions = 4096;
  const int64_t needed = *std::max_element(plan.context_lens.begin(), plan.context_lens.end());
  int64_t positions = position_capacity_;
  if (needed > positions) {
    positions = std::min(config_.max_position_embeddings,
                         std::max({needed, 2 * positions, kInitialPositions}));
  }
  NIBBLE_RETURN_IF_ERROR(ReserveRows(plan.num_tokens(), plan.num_samples()));
  NIBBLE_RETURN_IF_ERROR(ReserveLogits(plan.num_samples()));
  NIBBLE_RETURN_IF_ERROR(ReservePositions(positions, pool));
  return ReserveAttention({.max_tokens = plan.num_tokens(),
                           .max_positions = positions,
                           .max_samples = 0,
                           .max_seqs = plan.num_seqs(),
                           .block_size = cache.block_size()});
}

}  // namespace nibble::engine
