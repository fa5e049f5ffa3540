// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A CudaDecoderModel's weights, and what it is asked for beside steps.

#include "engine/model/cuda/cuda_decoder.h"

#include <algorithm>
#include <utility>

#include "engine/model/cuda/device_memory.h"
#include "kernels/gemm/cuda/cublaslt.h"

namespace nibble::engine {
namespace {

using kernels::cuda::DeviceMatrix;

bool HasDenseLayers(const DecoderWeights& weights) {
  return !std::all_of(weights.layers.begin(), weights.layers.end(),
                      [](const DecoderLayer& layer) { return layer.moe.has_value(); });
}

}  // namespace

CudaDecoderModel::CudaDecoderModel(ModelConfig config, DecoderWeights weights,
                                   const LoadOptions& load, const CudaOptions& options,
                                   const gpu::DeviceCaps& caps)
    : config_(std::move(config)),
      place_(load.place),
      rank_config_(RankConfig(config_, place_)),
      weights_(std::move(weights)),
      options_(options),
      caps_(caps),
      activation_(load.dtype.value_or(config_.dtype) == DType::kF32 ? DType::kF32 : DType::kBf16),
      q_size_(rank_config_.num_heads * config_.head_dim),
      kv_size_(rank_config_.num_kv_heads * config_.head_dim),
      qkv_size_(q_size_ + 2 * kv_size_),
      dense_intermediate_size_(HasDenseLayers(weights_) ? rank_config_.intermediate_size : 0),
      reorders_(weights_.reorders()),
      weight_bytes_(weights_.size_bytes()),
      step_weight_bytes_(weights_.step_bytes(config_, place_)) {}

CudaDecoderModel::~CudaDecoderModel() {
  absl::StatusOr<gpu::DeviceGuard> guard = gpu::DeviceGuard::Create(caps_.index);
  if (guard.ok()) closing_.emplace(*std::move(guard));
  stream_.Synchronize().IgnoreError();  // a chunk of a prompt is not waited for
}

absl::StatusOr<std::unique_ptr<CudaDecoderModel>> CudaDecoderModel::Create(
    ModelConfig config, DecoderWeights weights, const LoadOptions& load, const CudaOptions& options,
    const gpu::DeviceCaps& caps) {
  std::unique_ptr<CudaDecoderModel> model(
      new CudaDecoderModel(std::move(config), std::move(weights), load, options, caps));
  NIBBLE_ASSIGN_OR_RETURN(model->stream_, gpu::Stream::Create());
  NIBBLE_ASSIGN_OR_RETURN(model->copied_, gpu::Event::Create());
  NIBBLE_RETURN_IF_ERROR(model->Upload(load));
  return model;
}

absl::Status CudaDecoderModel::Upload(const LoadOptions& load) {
  EmbeddingTable& table = weights_.embedding;
  embedding_dtype_ = table.dtype;
  NIBBLE_RETURN_IF_ERROR(Retake(static_cast<int64_t>(table.rows.size()), &embedding_));
  NIBBLE_RETURN_IF_ERROR(gpu::CopyToDeviceAndWait(embedding_.data(), table.rows.data(),
                                                  table.rows.size(), stream_.get()));
  table.rows = {};
  const int64_t first_layer = LayersOf(config_, place_).begin;
  for (const DecoderLayer& layer : weights_.layers) {
    NIBBLE_RETURN_IF_ERROR(UploadLayer(layer, first_layer + static_cast<int64_t>(layers_.size())));
  }
  if (place_.is_last_stage()) {
    NIBBLE_ASSIGN_OR_RETURN(final_norm_, gpu::Upload(weights_.final_norm, stream_.get()));
    NIBBLE_ASSIGN_OR_RETURN(lm_head_,
                            DeviceLinear::Create(weights_.lm_head, "lm_head", stream_.get()));
    logits_stride_ = PaddedStride((config_.vocab_size + place_.size - 1) / place_.size,
                                  DType::kF32);  // of every rank
  }
  gemm_.caps = caps_;
  if (options_.use_cublaslt) {
    absl::StatusOr<std::unique_ptr<kernels::cuda::CublasLt>> cublaslt =
        kernels::cuda::CublasLt::Open();
    if (cublaslt.ok()) cublaslt_ = *std::move(cublaslt);
  }
  gemm_.cublaslt = cublaslt_.get();
  if (!config_.moe.has_value()) return absl::OkStatus();
  std::vector<const MoeWeights*> experts;
  for (const DecoderLayer& layer : weights_.layers) {
    experts.push_back(layer.moe.has_value() ? &*layer.moe : nullptr);
  }
  NIBBLE_ASSIGN_OR_RETURN(moe_, DeviceMoe::Create(config_, place_, *load.expert_layout, experts,
                                                  first_layer, activation_, stream_.get()));
  return absl::OkStatus();
}

absl::Status CudaDecoderModel::UploadLayer(const DecoderLayer& layer, int64_t number) {
  const auto linear = [&](const Linear& host, const char* module) {
    return DeviceLinear::Create(host, fmt::format("model.layers.{}.{}", number, module),
                                stream_.get());
  };
  const auto upload = [this](const std::vector<float>& values) {
    return gpu::Upload(values, stream_.get());
  };
  Layer& device = layers_.emplace_back();
  NIBBLE_ASSIGN_OR_RETURN(device.input_norm, upload(layer.input_norm));
  NIBBLE_ASSIGN_OR_RETURN(device.qkv, linear(layer.qkv, "self_attn.qkv"));
  NIBBLE_ASSIGN_OR_RETURN(device.q_norm, upload(layer.q_norm));
  NIBBLE_ASSIGN_OR_RETURN(device.k_norm, upload(layer.k_norm));
  NIBBLE_ASSIGN_OR_RETURN(device.o, linear(layer.o, "self_attn.o_proj"));
  NIBBLE_ASSIGN_OR_RETURN(device.post_attention_norm, upload(layer.post_attention_norm));
  device.has_experts = layer.moe.has_value();
  if (device.has_experts) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(device.gate_up, linear(layer.gate_up, "mlp.gate_up"));
  NIBBLE_ASSIGN_OR_RETURN(device.down, linear(layer.down, "mlp.down_proj"));
  return absl::OkStatus();
}

std::string CudaDecoderModel::device_name() const {
  const absl::StatusOr<std::string> driver = gpu::DriverVersion();
  return fmt::format(
      "{} (device {}, sm_{}, {:.1f} GB, driver for CUDA {}), attention {}, {} cuBLASLt, {}",
      caps_.name, caps_.index, caps_.sm, static_cast<double>(caps_.memory_bytes) * 1e-9,
      driver.ok() ? *driver : "?",
      attention_op_ == nullptr ? "as the step needs" : attention_op_->name(),
      cublaslt_ == nullptr ? "no" : "with",
      options_.enforce_eager || place_.num_stages > 1 ? "no graphs"
      : place_.size > 1 ? "graphs of decode steps where the ranks' sums can be captured"
                        : "graphs of decode steps");
}

ExpertLoad CudaDecoderModel::expert_load() const {
  return moe_ == nullptr ? ExpertLoad{} : moe_->load(caps_.index);
}

absl::StatusOr<std::unique_ptr<KvCache>> CudaDecoderModel::MakeKvCache(int64_t num_blocks,
                                                                       int64_t block_size) const {
  NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(caps_.index));
  absl::StatusOr<std::unique_ptr<DeviceKvCache>> cache =
      DeviceKvCache::Create(rank_config_, num_blocks, block_size, weights_.kv_dtype);
  if (!cache.ok()) {
    return Annotate(cache.status(),
                    fmt::format("the KV cache ({} blocks of {} tokens)", num_blocks, block_size));
  }
  return *std::move(cache);
}

DeviceMatrix CudaDecoderModel::Matrix(const gpu::DeviceBuffer<uint8_t>& memory,
                                      int64_t columns) const {
  return {
      .data = memory.data(), .dtype = activation_, .stride = PaddedStride(columns, activation_)};
}

}  // namespace nibble::engine
