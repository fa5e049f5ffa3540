// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One step as the host sees it: arrays go up, launches or a captured graph follow, tokens come
// down.

#include <algorithm>
#include <span>
#include <utility>

#include "base/cuda/error.h"
#include "engine/model/cuda/cuda_decoder.h"
#include "engine/sampling/sampler.h"
#include "kernels/sampling/cuda/sample.h"

namespace nibble::engine {

int64_t CudaDecoderModel::BucketOf(int64_t num_seqs, int64_t max_seqs) {
  if (num_seqs < 1 || num_seqs > max_seqs) return 0;
  for (const int64_t small : {1, 2, 4}) {
    if (num_seqs <= small) return std::min(small, max_seqs);
  }
  return std::min((num_seqs + 7) / 8 * 8, max_seqs);
}

absl::Status CudaDecoderModel::Forward(const StepPlan& plan, KvCache* cache, float* logits,
                                       ThreadPool* pool) {
  const auto run = [&]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(lost_);
    NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(caps_.index));
    NIBBLE_RETURN_IF_ERROR(Compute(plan, cache, pool));
    if (has_logits()) NIBBLE_RETURN_IF_ERROR(CopyLogits(0, plan.num_samples(), logits));
    return FinishStep();
  };
  return Diagnose(run());
}

absl::StatusOr<StepOutput> CudaDecoderModel::ForwardAndSample(const StepPlan& plan, KvCache* cache,
                                                              const HostSampling& host,
                                                              ThreadPool* pool) {
  StepOutput output;
  const auto run = [&]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(lost_);
    NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(caps_.index));
    NIBBLE_RETURN_IF_ERROR(Compute(plan, cache, pool));
    // Nothing to wait for in a chunk of a prompt: the next step's arrays wait for its copies.
    if (place_.size == 1 && place_.num_stages == 1 && plan.num_samples() == 0) {
      return absl::OkStatus();
    }
    if (!has_logits() || plan.num_samples() == 0) return FinishStep();
    NIBBLE_ASSIGN_OR_RETURN(output, Sample(plan, host.isa));
    return absl::OkStatus();
  };
  const absl::Status status = Diagnose(run());
  if (!status.ok()) return status;
  return output;
}

absl::Status CudaDecoderModel::Compute(const StepPlan& plan, KvCache* any_cache, ThreadPool* pool) {
  const auto* const cache = dynamic_cast<const DeviceKvCache*>(any_cache);
  if (cache == nullptr) return InvalidArgument("the KV cache is not in the device's memory");
  NIBBLE_RETURN_IF_ERROR(checker_.Check(plan, {.vocab_size = config_.vocab_size,
                                               .max_positions = config_.max_position_embeddings,
                                               .num_blocks = cache->num_blocks(),
                                               .block_size = cache->block_size()}));
  if (plan.num_tokens() == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckLinks());
  NIBBLE_RETURN_IF_ERROR(GrowFor(plan, *cache, pool));
  NIBBLE_RETURN_IF_ERROR(Connect(pool));
  if (!place_.is_first_stage()) NIBBLE_RETURN_IF_ERROR(ReceiveRows(plan.num_tokens()));
  NIBBLE_RETURN_IF_ERROR(RunStep(plan, *cache));
  return place_.is_last_stage() ? absl::OkStatus() : SendRows(plan.num_tokens());
}

absl::Status CudaDecoderModel::RunStep(const StepPlan& plan, const DeviceKvCache& cache) {
  const bool replays = CanReplay(plan);
  StepShape shape{.num_rows = plan.num_tokens(), .num_samples = plan.num_samples()};
  if (replays) {
    shape.num_rows = BucketOf(plan.num_seqs(), attention_limits_.max_seqs);
    shape.num_samples = shape.num_rows;
  }
  NIBBLE_RETURN_IF_ERROR(copied_.Synchronize());
  NIBBLE_ASSIGN_OR_RETURN(const StepArrays arrays,
                          staging_.Upload(plan, shape.num_rows, shape.num_samples, stream_.get()));
  sample_params_ = arrays.sampling;
  last_shape_ = shape;
  last_arrays_ = arrays;
  NIBBLE_RETURN_IF_ERROR(attention_op_->Plan({.num_seqs = plan.num_seqs(),
                                              .query_start = plan.query_start.data(),
                                              .context_lens = plan.context_lens.data(),
                                              .block_tables = plan.block_tables.data(),
                                              .max_blocks_per_seq = plan.max_blocks_per_seq,
                                              .graph_seqs = replays ? shape.num_rows : 0},
                                             stream_.get()));
  NIBBLE_RETURN_IF_ERROR(copied_.Record(stream_.get()));
  return replays ? ReplayStep(shape, arrays, cache) : EnqueueStep(shape, arrays, cache);
}

// Every sequence has one token, and all are sampled.
bool CudaDecoderModel::CanReplay(const StepPlan& plan) const {
  if (options_.enforce_eager || place_.num_stages > 1) return false;
  if (communicator_ != nullptr && !communicator_->capturable()) return false;
  if (plan.num_tokens() != plan.num_seqs() || plan.num_samples() != plan.num_tokens()) return false;
  const int64_t bucket = BucketOf(plan.num_seqs(), attention_limits_.max_seqs);
  return bucket > 0 && bucket <= row_capacity_ && bucket <= sample_capacity_ &&
         bucket * logits_stride_ <= static_cast<int64_t>(own_logits_.size());
}

// A bucket's first step runs as it is: a kernel's first launch may load it, which a capture does
// not survive everywhere.
absl::Status CudaDecoderModel::ReplayStep(const StepShape& shape, const StepArrays& arrays,
                                          const DeviceKvCache& cache) {
  if (graph_cache_id_ != cache.id()) graphs_.clear();
  graph_cache_id_ = cache.id();
  const auto found = graphs_.find(shape.num_rows);
  if (found == graphs_.end()) {
    NIBBLE_RETURN_IF_ERROR(EnqueueStep(shape, arrays, cache));
    graphs_.try_emplace(shape.num_rows);
    return absl::OkStatus();
  }
  Graph& graph = found->second;
  if (!graph.exec) {
    NIBBLE_RETURN_IF_ERROR(gpu::GraphExec::BeginCapture(stream_.get()));
    const absl::Status enqueued = EnqueueStep(shape, arrays, cache);
    absl::StatusOr<gpu::GraphExec> exec = gpu::GraphExec::EndCapture(stream_.get());
    NIBBLE_RETURN_IF_ERROR(enqueued);
    if (!exec.ok()) return exec.status();
    graph.exec = *std::move(exec);
  }
  return graph.exec.Launch(stream_.get());
}

absl::Status CudaDecoderModel::CopyLogits(int64_t first_row, int64_t num_rows, float* logits) {
  if (num_rows == 0) return absl::OkStatus();
  const bool gathered = place_.size > 1;
  const auto vocab_bytes = static_cast<size_t>(config_.vocab_size) * sizeof(float);
  const int64_t stride = gathered ? PaddedStride(config_.vocab_size, DType::kF32) : logits_stride_;
  const float* const from = (gathered ? logits_ : own_logits_).data() + first_row * stride;
  return gpu::ToStatus(
      cudaMemcpy2DAsync(logits, vocab_bytes, from, static_cast<size_t>(stride) * sizeof(float),
                        vocab_bytes, static_cast<size_t>(num_rows), cudaMemcpyDeviceToHost,
                        stream_.get()),
      "cudaMemcpy2DAsync of logits");
}

absl::Status CudaDecoderModel::EnqueueSample(int64_t num_rows) {
  if (num_rows == 0) return absl::OkStatus();
  const bool gathered = place_.size > 1;
  return Do(StepOp::kSample, [&] {
    return kernels::cuda::Sample(
        {.num_rows = num_rows,
         .vocab_size = config_.vocab_size,
         .logits = (gathered ? logits_ : own_logits_).data(),
         .stride = gathered ? PaddedStride(config_.vocab_size, DType::kF32) : logits_stride_,
         .params = sample_params_,
         .token_ids = tokens_.data(),
         .workspace = sample_workspace_.data()},
        stream_.get());
  });
}

absl::StatusOr<StepOutput> CudaDecoderModel::Sample(const StepPlan& plan, Isa isa) {
  const int64_t num_rows = plan.num_samples();
  NIBBLE_RETURN_IF_ERROR(EnqueueSample(num_rows));
  NIBBLE_RETURN_IF_ERROR(gpu::CopyToHost(host_tokens_.data(), tokens_.data(),
                                         static_cast<size_t>(num_rows) * sizeof(int32_t),
                                         stream_.get()));
  NIBBLE_RETURN_IF_ERROR(FinishStep());

  StepOutput output;
  output.tokens.resize(static_cast<size_t>(num_rows));
  for (int64_t row = 0; row < num_rows; ++row) {
    SampledToken& token = output.tokens[static_cast<size_t>(row)];
    token.token_id = std::max(host_tokens_.data()[row], 0);
    token.no_finite_logit = host_tokens_.data()[row] < 0;
  }
  NIBBLE_RETURN_IF_ERROR(SampleOnHost(plan, isa, &output.tokens));
  return output;
}

// The rows that the device does not sample, in rounds of as many as there is pinned memory for: a
// copy for each run of neighbours, one wait for all.
absl::Status CudaDecoderModel::SampleOnHost(const StepPlan& plan, Isa isa,
                                            std::vector<SampledToken>* tokens) {
  const auto vocab_size = static_cast<size_t>(config_.vocab_size);
  const size_t max_rows = host_logits_.size() / vocab_size;
  std::vector<size_t> rows;
  for (size_t row = 0; row < tokens->size(); ++row) {
    if (!IsSampledOnDevice(plan.sampling[row])) rows.push_back(row);
  }
  for (size_t begin = 0; begin < rows.size(); begin += max_rows) {
    const std::span round = std::span(rows).subspan(begin, std::min(max_rows, rows.size() - begin));
    for (size_t first = 0, end = 0; first < round.size(); first = end) {
      for (end = first + 1; end < round.size() && round[end] == round[end - 1] + 1;) ++end;
      NIBBLE_RETURN_IF_ERROR(CopyLogits(static_cast<int64_t>(round[first]),
                                        static_cast<int64_t>(end - first),
                                        host_logits_.data() + first * vocab_size));
    }
    NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());
    for (size_t i = 0; i < round.size(); ++i) {
      (*tokens)[round[i]] = SampleRow({host_logits_.data() + i * vocab_size, vocab_size},
                                      plan.sampling[round[i]], isa);
    }
  }
  return absl::OkStatus();
}

absl::Status CudaDecoderModel::FinishStep() {
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());
  return communicator_ == nullptr ? absl::OkStatus() : communicator_->Check();
}

// What the stream says holds for the process: CUDA has no way back from such an error.
absl::Status CudaDecoderModel::Diagnose(absl::Status status) {
  if (status.ok() || !lost_.ok()) return status;
  if (!gpu::IsSticky(cudaPeekAtLastError()) && !gpu::IsSticky(cudaStreamQuery(stream_.get()))) {
    return status;
  }
  lost_ = Internal("CUDA device {} ({}) is lost to this process, which has to be started anew: {}",
                   caps_.index, caps_.name, std::string(status.message()));
  return lost_;
}

}  // namespace nibble::engine
