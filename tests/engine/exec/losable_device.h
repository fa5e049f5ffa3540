// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A device that is the CPU, and is lost in one step: as a CUDA device is after an illegal access.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "engine/model/decoder.h"
#include "engine/model/memory.h"
#include "engine/model/model_device.h"

namespace nibble::testing {

// Passes everything on, until the device's count of steps has come to its end.
class LosableModel final : public engine::Model {
 public:
  LosableModel(std::unique_ptr<engine::Model> model, std::atomic<int>* steps_left)
      : model_(std::move(model)), steps_left_(steps_left) {}

  const engine::ModelConfig& config() const override { return model_->config(); }
  int64_t weight_bytes() const override { return model_->weight_bytes(); }
  DType kv_dtype() const override { return model_->kv_dtype(); }
  std::string quantization_name() const override { return model_->quantization_name(); }
  const engine::ModelConfig& rank_config() const override { return model_->rank_config(); }
  void SetCommunicator(comm::Communicator* communicator) override {
    model_->SetCommunicator(communicator);
  }
  void SetStageLink(comm::StageLink* link) override { model_->SetStageLink(link); }
  bool has_logits() const override { return model_->has_logits(); }
  engine::ExpertLoad expert_load() const override { return model_->expert_load(); }
  absl::StatusOr<std::unique_ptr<engine::KvCache>> MakeKvCache(int64_t num_blocks,
                                                               int64_t block_size) const override {
    return model_->MakeKvCache(num_blocks, block_size);
  }
  engine::KvMemory kv_memory() const override { return model_->kv_memory(); }
  absl::Status Reserve(const engine::StepLimits& limits, ThreadPool* pool) override {
    return model_->Reserve(limits, pool);
  }
  absl::Status Forward(const engine::StepPlan& plan, engine::KvCache* cache, float* logits,
                       ThreadPool* pool) override {
    if (steps_left_->fetch_sub(1) == 1) lost_ = Internal("the device is lost");
    return lost_.ok() ? model_->Forward(plan, cache, logits, pool) : lost_;
  }
  absl::Status Health() const override { return lost_; }

 private:
  std::unique_ptr<engine::Model> model_;
  std::atomic<int>* steps_left_;
  absl::Status lost_;
};

class LosableDevice final : public engine::ModelDevice {
 public:
  explicit LosableDevice(std::atomic<int>* steps_left)
      : packer_(Isa::kRef), steps_left_(steps_left) {}

  absl::StatusOr<engine::LoadOptions> Adapt(const engine::ModelConfig& /*config*/,
                                            engine::LoadOptions options) const override {
    return options;
  }
  absl::Status CheckMemory(int64_t bytes, std::string_view what) const override {
    return engine::CheckMemory(bytes, what);
  }
  const kernels::WeightPacker& packer() const override { return packer_; }
  absl::StatusOr<std::unique_ptr<engine::Model>> MakeModel(
      engine::ModelConfig config, engine::DecoderWeights weights,
      const engine::LoadOptions& options) const override {
    return std::make_unique<LosableModel>(
        std::make_unique<engine::DecoderModel>(std::move(config), std::move(weights), options),
        steps_left_);
  }

 private:
  const kernels::CpuWeightPacker packer_;
  std::atomic<int>* steps_left_;
};

}  // namespace nibble::testing
