// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From the tensors of a layer with experts to MoeWeights. Checkpoints name them in three ways
// (README.md, "Experts"):
//
//   block_sparse_moe.experts.E.{w1,w3,w2}            Mixtral; w1 is gate, w3 up, w2 down
//   mlp.experts.E.{gate,up,down}_proj                Qwen
//   (either).experts.{gate_up_proj,down_proj}        all experts in one tensor, plain only:
//                                                    [E, 2 * I, hidden], gate rows first, and
//                                                    [E, hidden, I]
//
// Each expert's matrices go through LinearLoader like any others, in every form that it reads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/grouped_linear.h"
#include "engine/model/linear_loader.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/model/moe_layer.h"
#include "engine/model/safetensors.h"

namespace nibble::engine {

// The experts in this rank's slots of layer `layer` of the model, slot by slot: one may come twice.
std::vector<int32_t> ExpertsOfRank(const ModelConfig& config, const LoadOptions& options,
                                   int64_t layer);

// Not thread-safe; everything given outlives it.
class ExpertLoader {
 public:
  ExpertLoader(const Checkpoint& checkpoint, const ModelConfig& config, const LoadOptions& options,
               LinearLoader* linears, ThreadPool* pool)
      : checkpoint_(checkpoint),
        config_(config),
        options_(options),
        linears_(*linears),
        pool_(pool) {}

  // Of layer `layer` of the model, which has experts.
  absl::StatusOr<MoeWeights> Load(int64_t layer);

 private:
  using Modules = std::vector<LinearModule>;  // of one linear layer
  // How a layer's experts are named.
  struct Names {
    std::string block;  // "model.layers.0.mlp."
    const char* gate = nullptr;
    const char* up = nullptr;
    const char* down = nullptr;
    bool fused = false;  // one tensor for all experts
  };

  bool HasModule(const std::string& name) const;
  absl::StatusOr<Names> FindNames(int64_t layer) const;
  LinearModule Module(const std::string& name) const;
  // The matrix of `expert` in a tensor of all: rows [row, row + share.n) of [num_experts, rows, k].
  absl::StatusOr<LinearModule> PartOfTensor(const std::string& tensor, LinearModule module,
                                            int64_t expert, int64_t row, int64_t rows) const;
  absl::StatusOr<Modules> GateUpModules(const Names& names, int64_t expert) const;
  absl::StatusOr<Modules> DownModules(const Names& names, int64_t expert) const;
  absl::StatusOr<GroupedLinear> LoadSlots(std::vector<Modules> slots);
  absl::Status LoadShared(const std::string& block, MoeWeights* moe);

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const LoadOptions& options_;
  LinearLoader& linears_;
  ThreadPool* pool_;
};

}  // namespace nibble::engine
