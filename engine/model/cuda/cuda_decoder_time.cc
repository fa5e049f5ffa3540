// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A step taken apart for measurements. The launches of one kind of op, of all layers in the step's
// order, are captured as a graph of their own: so no figure has the host's launches in it, and
// weights come from memory as they do in the step.

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "engine/model/cuda/cuda_decoder.h"

namespace nibble::engine {
namespace {

// Median seconds of `runs` launches.
absl::StatusOr<double> TimeGraph(const gpu::GraphExec& graph, int runs, cudaStream_t stream) {
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Event begin, gpu::Event::Create(/*timing=*/true));
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Event end, gpu::Event::Create(/*timing=*/true));
  NIBBLE_RETURN_IF_ERROR(graph.Launch(stream));
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    NIBBLE_RETURN_IF_ERROR(begin.Record(stream));
    NIBBLE_RETURN_IF_ERROR(graph.Launch(stream));
    NIBBLE_RETURN_IF_ERROR(end.Record(stream));
    NIBBLE_RETURN_IF_ERROR(end.Synchronize());
    NIBBLE_ASSIGN_OR_RETURN(const float ms, gpu::ElapsedMs(begin, end));
    seconds.push_back(static_cast<double>(ms) * 1e-3);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

void AddWork(const Linear& linear, int64_t num_rows, StepOpTime* time) {
  time->weight_bytes += linear.size_bytes();
  time->operations += 2.0 * static_cast<double>(num_rows * linear.n() * linear.k());
  time->int8 = linear.takes_int8();
}

// Of one matrix of a layer's experts, of which the step's tokens chose `experts_hit`.
void AddWork(const GroupedLinear& experts, int64_t experts_hit, int64_t num_rows,
             StepOpTime* time) {
  time->weight_bytes += experts.size_bytes() / experts.num_slots() * experts_hit;
  time->operations += 2.0 * static_cast<double>(num_rows * experts.n() * experts.k());
  time->int8 = experts.takes_int8();
}

// `tokens` of the step chose each expert. The router is left out: it is small, and float.
void AddExperts(const MoeWeights& moe, std::span<const uint64_t> tokens, StepOpTime* time) {
  const auto hit = std::count_if(tokens.begin(), tokens.end(), [](uint64_t n) { return n > 0; });
  const auto num_rows =
      static_cast<int64_t>(std::accumulate(tokens.begin(), tokens.end(), uint64_t{0}));
  AddWork(moe.gate_up, hit, num_rows, time);
  AddWork(moe.down, hit, num_rows, time);
}

// `after` less `before`.
std::vector<uint64_t> TokensBetween(const ExpertLoad& before, const ExpertLoad& after) {
  std::vector<uint64_t> tokens = after.tokens;
  for (size_t i = 0; i < tokens.size() && i < before.tokens.size(); ++i) {
    tokens[i] -= before.tokens[i];
  }
  return tokens;
}

}  // namespace

absl::StatusOr<StepTime> CudaDecoderModel::TimeStep(const StepPlan& plan, KvCache* any_cache,
                                                    int runs, ThreadPool* pool) {
  if (place_.size > 1 || place_.num_stages > 1) {
    return Unimplemented("ops are timed on one rank, this is one of {}",
                         place_.size * place_.num_stages);
  }
  if (runs < 1) return InvalidArgument("{} runs are to be timed, the least are 1", runs);
  if (plan.num_tokens() == 0) return InvalidArgument("a step of 0 tokens is to be timed");
  StepTime time;
  const auto run = [&]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(lost_);
    NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(caps_.index));
    NIBBLE_RETURN_IF_ERROR(FinishStep());  // of what was enqueued before
    const ExpertLoad load = expert_load();
    // Loads the kernels, leaves values that the ops can read and the plan's arrays on the device.
    NIBBLE_RETURN_IF_ERROR(Compute(plan, any_cache, pool));
    NIBBLE_RETURN_IF_ERROR(EnqueueSample(plan.num_samples()));
    NIBBLE_RETURN_IF_ERROR(FinishStep());
    const std::vector<uint64_t> expert_tokens = TokensBetween(load, expert_load());
    const auto& cache = dynamic_cast<const DeviceKvCache&>(*any_cache);  // Compute() has checked it
    NIBBLE_ASSIGN_OR_RETURN(time.seconds, TimeOnly(std::nullopt, plan, cache, runs));
    for (int i = 0; i < kNumStepOps; ++i) {
      StepOpTime op{.op = static_cast<StepOp>(i)};
      NIBBLE_ASSIGN_OR_RETURN(op.seconds, TimeOnly(op.op, plan, cache, runs));
      op.calls = num_enqueued_;
      if (op.calls == 0) continue;
      DescribeWork(expert_tokens, &op);
      time.ops.push_back(op);
    }
    return absl::OkStatus();
  };
  const absl::Status status = Diagnose(run());
  if (!status.ok()) return status;
  return time;
}

// Of the step that ran last. 0 for an op that it does not have.
absl::StatusOr<double> CudaDecoderModel::TimeOnly(std::optional<StepOp> op, const StepPlan& plan,
                                                  const DeviceKvCache& cache, int runs) {
  NIBBLE_RETURN_IF_ERROR(gpu::GraphExec::BeginCapture(stream_.get()));
  only_op_ = op;
  num_enqueued_ = 0;
  absl::Status enqueued = EnqueueStep(last_shape_, last_arrays_, cache);
  if (enqueued.ok()) enqueued = EnqueueSample(plan.num_samples());
  only_op_.reset();
  const absl::StatusOr<gpu::GraphExec> graph = gpu::GraphExec::EndCapture(stream_.get());
  NIBBLE_RETURN_IF_ERROR(enqueued);
  if (!graph.ok()) return graph.status();
  return num_enqueued_ == 0 ? 0.0 : TimeGraph(*graph, runs, stream_.get());
}

void CudaDecoderModel::DescribeWork(const std::vector<uint64_t>& expert_tokens,
                                    StepOpTime* time) const {
  if (time->op == StepOp::kHead) {
    return AddWork(weights_.lm_head, last_shape_.num_samples, time);
  }
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const DecoderLayer& layer = weights_.layers[l];
    const bool keeps = l + 1 == weights_.layers.size();  // only the rows that are sampled
    const int64_t num_rows = keeps ? last_shape_.num_samples : last_shape_.num_rows;
    if (time->op == StepOp::kQkv) AddWork(layer.qkv, last_shape_.num_rows, time);
    if (num_rows == 0) continue;
    if (time->op == StepOp::kO) AddWork(layer.o, num_rows, time);
    if (time->op == StepOp::kExperts && layer.moe.has_value()) {
      const auto num_experts = static_cast<size_t>(config_.moe->num_experts);
      AddExperts(*layer.moe, std::span(expert_tokens).subspan(l * num_experts, num_experts), time);
    }
    if (layer.moe.has_value()) continue;
    if (time->op == StepOp::kGateUp) AddWork(layer.gate_up, num_rows, time);
    if (time->op == StepOp::kDown) AddWork(layer.down, num_rows, time);
  }
}

}  // namespace nibble::engine
