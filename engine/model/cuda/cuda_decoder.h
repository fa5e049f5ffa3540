// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The decoder family (engine/model/decoder.h) on a CUDA device: the same order of operations, each
// one enqueued on one stream; the host waits once a step, for the tokens.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/status.h"
#include "comm/gpu/device_communicator.h"
#include "engine/model/cuda/cuda_device.h"
#include "engine/model/cuda/device_kv_cache.h"
#include "engine/model/cuda/device_linear.h"
#include "engine/model/cuda/device_moe.h"
#include "engine/model/cuda/step_op.h"
#include "engine/model/cuda/step_staging.h"
#include "engine/model/decoder.h"
#include "engine/model/model.h"
#include "engine/model/plan_check.h"
#include "kernels/attention/cuda/paged_attention.h"

namespace nibble::engine {

// The residual stream is float32; what linear layers write, and what attention and SwiGLU read, is
// of the activation type: float32 where the weights are, else bf16.
//
// Decode steps, in which every sequence has one token and all are sampled, are captured as graphs,
// one for each size of batch in CudaDecoderModel::BucketOf; a step is padded to its bucket. Padding
// is computed like everything else, writes no keys and values and is nobody's.
class CudaDecoderModel final : public Model {
 public:
  // As DecoderModel's constructor; the device is the current one. UNIMPLEMENTED, naming module and
  // field, for weights that the device does not have kernels for.
  static absl::StatusOr<std::unique_ptr<CudaDecoderModel>> Create(ModelConfig config,
                                                                  DecoderWeights weights,
                                                                  const LoadOptions& load,
                                                                  const CudaOptions& options,
                                                                  const gpu::DeviceCaps& caps);
  ~CudaDecoderModel() override;

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override { return weight_bytes_; }
  int64_t step_weight_bytes() const override { return step_weight_bytes_; }
  DType kv_dtype() const override { return weights_.kv_dtype; }
  std::string quantization_name() const override { return weights_.quantization_name; }
  std::string device_name() const override;
  std::vector<std::string> warnings() const override { return weights_.warnings; }
  const ModelConfig& rank_config() const override { return rank_config_; }
  void SetCommunicator(comm::Communicator* communicator) override;
  void SetAllReduce(const comm::AllReduceOptions& options) override { all_reduce_ = options; }
  absl::StatusOr<comm::AllReducePolicy> ConnectDevices(const comm::AllReducePolicy& known,
                                                       ThreadPool* pool) override;
  void SetStageLink(comm::StageLink* link) override { stage_link_ = link; }
  bool has_logits() const override { return place_.rank == 0 && place_.is_last_stage(); }
  ExpertLoad expert_load() const override;
  absl::StatusOr<std::unique_ptr<KvCache>> MakeKvCache(int64_t num_blocks,
                                                       int64_t block_size) const override;
  KvMemory kv_memory() const override;
  // They come into pinned memory of the model's own.
  int64_t host_logits_rows(int64_t /*num_samples*/) const override { return 0; }
  absl::Status Reserve(const StepLimits& limits, ThreadPool* pool) override;
  // But for the plans of attention.
  int64_t StepBytes(const StepLimits& limits) const override;
  absl::Status Forward(const StepPlan& plan, KvCache* cache, float* logits,
                       ThreadPool* pool) override;
  absl::StatusOr<StepOutput> ForwardAndSample(const StepPlan& plan, KvCache* cache,
                                              const HostSampling& host, ThreadPool* pool) override;
  absl::Status Health() const override { return lost_; }
  void Abort(const std::string& reason) override;

  // Rows that a decode step of `num_seqs` sequences is padded to: 1, 2, 4, then multiples of 8, but
  // no more than max_seqs. 0: there is no graph of so many.
  static int64_t BucketOf(int64_t num_seqs, int64_t max_seqs);
  // How long the device takes for `plan`, and for each kind of op: medians of `runs`, each kind as
  // a graph of its own. Like a step it computes `plan`, but what it leaves in the cache's slots of
  // `plan` means nothing. UNIMPLEMENTED for one rank of several, INVALID_ARGUMENT for an empty
  // plan.
  absl::StatusOr<StepTime> TimeStep(const StepPlan& plan, KvCache* cache, int runs,
                                    ThreadPool* pool);
  // Graphs captured so far.
  int64_t num_graphs() const { return static_cast<int64_t>(graphs_.size()); }

 private:
  struct Layer {
    gpu::DeviceBuffer<float> input_norm;
    DeviceLinear qkv;
    gpu::DeviceBuffer<float> q_norm;  // empty: none
    gpu::DeviceBuffer<float> k_norm;
    DeviceLinear o;
    gpu::DeviceBuffer<float> post_attention_norm;
    DeviceLinear gate_up;  // of a dense layer
    DeviceLinear down;
    bool has_experts = false;
  };
  // What the launches of a step depend on, besides what arrays hold.
  struct StepShape {
    int64_t num_rows = 0;
    int64_t num_samples = 0;  // rows that go on behind the last attention; all: the same rows
  };
  struct Graph {
    gpu::GraphExec exec;  // empty: the bucket ran once, which loads its kernels
  };

  CudaDecoderModel(ModelConfig config, DecoderWeights weights, const LoadOptions& load,
                   const CudaOptions& options, const gpu::DeviceCaps& caps);
  // cuda_decoder.cc: weights.
  absl::Status Upload(const LoadOptions& load);
  absl::Status UploadLayer(const DecoderLayer& layer, int64_t number);

  // cuda_decoder_reserve.cc: the memory of steps.
  int64_t RowBytes(int64_t rows, int64_t samples) const;
  int64_t LogitsBytes(int64_t samples) const;
  int64_t PositionBytes(int64_t num_positions) const;
  absl::Status ReserveRows(int64_t num_rows, int64_t num_samples);
  void ReleaseRows();
  absl::Status ReserveAttention(const StepLimits& limits);
  absl::Status ReservePositions(int64_t num_positions, ThreadPool* pool);
  absl::Status ReserveLogits(int64_t num_samples);
  absl::Status GrowFor(const StepPlan& plan, const DeviceKvCache& cache, ThreadPool* pool);
  int64_t GemmWorkspaceBytes(int64_t num_rows, int64_t num_samples) const;
  kernels::cuda::DeviceMatrix Matrix(const gpu::DeviceBuffer<uint8_t>& memory,
                                     int64_t columns) const;

  // cuda_decoder_step.cc: one step of the host.
  absl::Status Compute(const StepPlan& plan, KvCache* cache, ThreadPool* pool);
  absl::Status RunStep(const StepPlan& plan, const DeviceKvCache& cache);
  absl::Status ReplayStep(const StepShape& shape, const StepArrays& arrays,
                          const DeviceKvCache& cache);
  bool CanReplay(const StepPlan& plan) const;
  absl::Status CopyLogits(int64_t first_row, int64_t num_rows, float* logits);
  absl::Status EnqueueSample(int64_t num_rows);
  absl::StatusOr<StepOutput> Sample(const StepPlan& plan, Isa isa);
  absl::Status SampleOnHost(const StepPlan& plan, Isa isa, std::vector<SampledToken>* tokens);
  absl::Status FinishStep();
  // `status`; and when the device is lost, remembers that it is.
  absl::Status Diagnose(absl::Status status);

  // cuda_decoder_time.cc: a step taken apart.
  absl::StatusOr<double> TimeOnly(std::optional<StepOp> op, const StepPlan& plan,
                                  const DeviceKvCache& cache, int runs);
  // `expert_tokens` [num_layers, num_experts]: how many of the step's chose each.
  void DescribeWork(const std::vector<uint64_t>& expert_tokens, StepOpTime* time) const;

  // cuda_decoder_forward.cc: what a step launches.
  // Every launch of a step goes through here.
  template <typename Enqueue>
  absl::Status Do(StepOp op, const Enqueue& enqueue) {
    if (only_op_.has_value() && *only_op_ != op) return absl::OkStatus();
    ++num_enqueued_;
    return enqueue();
  }
  absl::Status EnqueueStep(const StepShape& shape, const StepArrays& arrays,
                           const DeviceKvCache& cache);
  absl::Status Embed(const StepShape& shape, const StepArrays& arrays);
  // x_ += delta_, which is summed over the ranks first; normed to what the next layer reads.
  absl::Status Normalize(const gpu::DeviceBuffer<float>& weight, int64_t num_rows, bool add_delta,
                         const DeviceInput& out);
  absl::Status Multiply(StepOp op, const DeviceLinear& linear, const DeviceInput& input,
                        int64_t num_rows, const kernels::cuda::DeviceMatrix& y);
  absl::Status ProjectQkv(const Layer& layer, const StepShape& shape, const StepArrays& arrays,
                          const kernels::cuda::KvCacheView& cache, bool first);
  absl::Status Attend(int64_t layer_idx, const kernels::cuda::KvCacheView& cache);
  absl::Status KeepRows(const StepShape& shape, const StepArrays& arrays);
  absl::Status FeedForward(int64_t layer_idx, int64_t num_rows, const int32_t* positions);
  absl::Status FeedForwardDense(const Layer& layer, int64_t num_rows);
  absl::Status ComputeLogits(int64_t num_rows);

  // cuda_decoder_ranks.cc: what ranks exchange.
  absl::Status CheckLinks() const;
  absl::Status Connect(ThreadPool* pool);
  absl::Status GatherLogits(int64_t num_rows);
  absl::Status ReceiveRows(int64_t num_rows);
  absl::Status SendRows(int64_t num_rows);

  // Taken by the destructor: the last member that goes.
  std::optional<gpu::DeviceGuard> closing_;
  const ModelConfig config_;
  const RankPlace place_;
  const ModelConfig rank_config_;
  DecoderWeights weights_;  // the packed ones lie on the device; the rest is gone after loading
  const CudaOptions options_;
  const gpu::DeviceCaps caps_;
  const DType activation_;
  const int64_t q_size_;
  const int64_t kv_size_;
  const int64_t qkv_size_;
  const int64_t dense_intermediate_size_;  // the rank's; 0: all layers have experts
  const bool reorders_;
  int64_t weight_bytes_ = 0;
  int64_t step_weight_bytes_ = 0;

  gpu::Stream stream_;
  gpu::DeviceBuffer<uint8_t> embedding_;  // [ids.size(), hidden_size]
  DType embedding_dtype_ = DType::kBf16;
  std::vector<Layer> layers_;
  gpu::DeviceBuffer<float> final_norm_;
  DeviceLinear lm_head_;
  std::unique_ptr<DeviceMoe> moe_;  // of a model with experts
  PlanChecker checker_;

  comm::AllReduceOptions all_reduce_ = {.mode = comm::AllReduceOptions::Mode::kNone};
  comm::AllReducePolicy device_policy_;              // of this group; empty: not chosen, or host's
  comm::Communicator* host_communicator_ = nullptr;  // not owned
  comm::StageLink* stage_link_ = nullptr;            // not owned
  std::mutex communicator_mutex_;
  // Written by the thread that computes under communicator_mutex_; Abort() reads it so too.
  std::unique_ptr<comm::DeviceCommunicator> communicator_;
  std::stop_source connecting_;    // under it too: this group's communicator is not to be made
  int64_t communicator_rows_ = 0;  // that it was made for

  // Room for so many, and what they lie in.
  int64_t row_capacity_ = 0;
  int64_t sample_capacity_ = 0;
  int64_t position_capacity_ = 0;
  StepLimits attention_limits_;
  StepStaging staging_;
  gpu::Event copied_;                     // all that a step reads of pinned memory is on the device
  gpu::DeviceBuffer<float> x_;            // [rows, hidden_size]: the residual stream
  gpu::DeviceBuffer<float> kept_x_;       // [samples, hidden_size]: of the rows that go on
  gpu::DeviceBuffer<uint8_t> delta_;      // [rows, hidden_size]: what the next norm adds to it
  gpu::DeviceBuffer<uint8_t> qkv_;        // [rows, qkv_size]
  gpu::DeviceBuffer<uint8_t> attention_;  // [rows, q_size]
  gpu::DeviceBuffer<uint8_t> kept_attention_;  // [samples, q_size]
  gpu::DeviceBuffer<uint8_t> gate_up_;         // [rows, 2 * intermediate_size]
  gpu::DeviceBuffer<uint8_t> silu_workspace_;
  DeviceActivations activations_;  // the input of the next linear layer
  gpu::DeviceBuffer<uint8_t> gemm_workspace_;
  std::unique_ptr<kernels::cuda::CublasLt> cublaslt_;  // null: not found, or not wanted
  kernels::cuda::GemmContext gemm_;
  gpu::DeviceBuffer<float> rope_cos_;  // [positions, rotary_dim / 2]
  gpu::DeviceBuffer<float> rope_sin_;
  std::unique_ptr<kernels::cuda::DeviceAttention> attention_op_;
  gpu::PinnedBuffer<float> stage_rows_;  // [rows, hidden_size]: of several stages
  int64_t logits_stride_ = 0;            // of own_logits_
  gpu::DeviceBuffer<float> own_logits_;  // [samples, logits_stride]: this rank's tokens
  gpu::DeviceBuffer<float> gathered_;    // [ranks, samples, logits_stride]
  gpu::DeviceBuffer<float> logits_;      // [samples, vocab_stride] of all; one rank: own_logits_
  gpu::DeviceBuffer<uint8_t> sample_workspace_;
  gpu::DeviceBuffer<int32_t> tokens_;  // [samples]
  gpu::PinnedBuffer<int32_t> host_tokens_;
  // Of rows that the host samples, kHostRows at most at a time.
  static constexpr int64_t kHostRows = 8;
  gpu::PinnedBuffer<float> host_logits_;

  std::map<int64_t, Graph> graphs_;                             // by bucket
  uint64_t graph_cache_id_ = 0;                                 // of the KV cache that they write
  const kernels::cuda::SampleParams* sample_params_ = nullptr;  // of the step, device memory
  // Of the step that is being enqueued: whether delta_ is this rank's part of a sum that the next
  // norm has to make, and x_ and attention_, or the rows kept of them.
  bool delta_is_part_ = false;
  float* current_x_ = nullptr;
  kernels::cuda::DeviceMatrix current_attention_;
  // Of the last step, for TimeStep().
  StepShape last_shape_;
  StepArrays last_arrays_;
  std::optional<StepOp> only_op_;  // all others are left out
  int64_t num_enqueued_ = 0;

  absl::Status lost_;
};

}  // namespace nibble::engine
