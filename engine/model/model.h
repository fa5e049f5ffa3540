// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A model loaded for one rank: weights packed for the chosen instruction set, and the forward pass
// over a step plan.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/all_reduce.h"
#include "comm/communicator.h"
#include "comm/stage_link.h"
#include "engine/model/model_config.h"
#include "engine/model/shard.h"
#include "engine/moe/expert_layout.h"
#include "engine/moe/expert_load.h"
#include "engine/scheduler/step_plan.h"
#include "kernels/kv/kv_cache.h"

namespace nibble::engine {

class ModelDevice;  // model_device.h

enum class Quantization {
  kNone,   // as the checkpoint is stored; 4-bit weights always run with int8 activations (W4A8)
  kW4A8,   // quantize the linear layers while loading, round to nearest, groups of 128
  kW8A8,   // the same in 8 bits, one scale per output channel
  kW4A16,  // the weights of kW4A8 with float activations
};

// Of a head that the checkpoint holds in full precision.
enum class HeadQuantization {
  kAuto,  // kInt8 when linear layers take int8 and a 16-bit head would be more than 1/8 of the
          // bytes that a step reads, else kNone
  kNone,
  kInt8,  // round to nearest, one scale per token of the vocabulary (W8A8)
  kInt4,  // round to nearest, groups of 128 (W4A8)
};

struct LoadOptions {
  // Only this rank's share of the weights is read and kept. INVALID_ARGUMENT, naming the dimension,
  // for a model that does not split into so many ranks.
  RankPlace place;
  // Which experts are where; null: number e of E on expert rank e * expert_size / E.
  std::shared_ptr<const ExpertLayout> expert_layout;
  // Storage of unquantized weights; arithmetic is float. Unset: the checkpoint's type.
  std::optional<DType> dtype;
  // Storage of the KV cache: float32, bfloat16, float16 or int8. Unset: that of the weights.
  std::optional<DType> kv_cache_dtype;
  Quantization quantization = Quantization::kNone;
  HeadQuantization head_quantization = HeadQuantization::kAuto;
  Isa isa = Isa::kRef;
  // What computes; null: this host's CPUs, with `isa`.
  std::shared_ptr<const ModelDevice> device;
  // A step fails with INTERNAL, naming layer and ranks, when ranks of a stage disagree on which
  // experts a token goes to: one more collective a step. For finding faults.
  bool check_routing = false;
  // Called as loading advances (bytes done, bytes in all), from the loading thread. May be null.
  std::function<void(int64_t, int64_t)> progress;
};

// Keys and values of all layers, in the memory of what computes the model: Model::MakeKvCache.
class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual int64_t num_blocks() const = 0;
  virtual int64_t block_size() const = 0;

  // Bytes of one block over all layers, scales included.
  static int64_t BlockBytes(const ModelConfig& config, int64_t block_size, DType dtype);
  // What every kind of cache refuses: INVALID_ARGUMENT naming value and limits, RESOURCE_EXHAUSTED
  // for what no address space holds. Else the bytes of all blocks.
  static absl::StatusOr<int64_t> CheckSize(const ModelConfig& config, int64_t num_blocks,
                                           int64_t block_size, DType dtype);
};

// In this host's memory.
class HostKvCache final : public KvCache {
 public:
  // Zeroed blocks for every layer. RESOURCE_EXHAUSTED, naming the bytes, when memory is not to be
  // had.
  static absl::StatusOr<HostKvCache> Create(const ModelConfig& config, int64_t num_blocks,
                                            int64_t block_size, DType dtype);

  kernels::KvCacheView layer(int64_t layer_idx);
  int64_t num_blocks() const override { return shape_.num_blocks; }
  int64_t block_size() const override { return shape_.block_size; }

 private:
  AlignedBuffer<uint8_t> storage_;  // [num_layers, 2 (keys, values), num_blocks, num_kv_heads,
                                    // block_size * head_dim] of dtype
  AlignedBuffer<float> scales_;     // [num_layers, 2, num_blocks, num_kv_heads, block_size]: int8
  int64_t num_layers_ = 0;
  kernels::KvCacheView shape_;  // of a layer, without memory
};

// The largest step that is to come.
struct StepLimits {
  int64_t max_tokens = 0;     // tokens computed in one step, all sequences together
  int64_t max_positions = 0;  // tokens of a sequence, 0..max_position_embeddings
  int64_t max_samples = 0;    // rows of logits of one step
  int64_t max_seqs = 0;       // sequences of one step
  int64_t block_size = 16;    // of the cache that is to come
};

// What the KV cache may take.
struct KvMemory {
  int64_t available_bytes = 0;  // less than 0: more is taken than what a device was to give
  // Nobody else takes of it, and nothing but the cache is still to be taken: all of it is for the
  // cache. Else it is memory that a host's processes share.
  bool is_own = false;
  int64_t total_bytes = 0;  // of the device whose share it is; 0: a host's memory
};

// Of rows whose tokens the host chooses.
struct HostSampling {
  float* logits = nullptr;  // [Model::host_logits_rows(num_samples), vocab_size], scratch
  Isa isa = Isa::kRef;
};

// INVALID_ARGUMENT, naming value and limit, for what no step of the model can be. A plan's indices
// are int32, and so are the rows of experts.
absl::Status CheckStepLimits(const ModelConfig& config, const StepLimits& limits);

class Model {
 public:
  // Reads config.json and the safetensors of `dir`. Errors name the file, tensor or value at fault.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& dir,
                                                     const LoadOptions& options, ThreadPool* pool);
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual int64_t weight_bytes() const = 0;  // packed weights in memory
  // Of these, what a step of one token reads: not the embedding table, and of the experts those of
  // one token, as if all were chosen alike.
  virtual int64_t step_weight_bytes() const { return weight_bytes(); }
  virtual DType kv_dtype() const = 0;  // what its KvCache is of
  // "w4a8 (folded), head int8": what the banner prints.
  virtual std::string quantization_name() const = 0;
  // "NVIDIA H100 80GB HBM3 (sm_90), attention flashinfer": empty for this host's CPUs.
  virtual std::string device_name() const { return {}; }
  // What somebody should know who serves this model as it was loaded.
  virtual std::vector<std::string> warnings() const { return {}; }

  // What this rank computes: config() with the layers of its stage (num_layers, sliding_window,
  // moe->is_moe_layer), its own num_heads, num_kv_heads and intermediate sizes. Of one rank,
  // config() itself.
  virtual const ModelConfig& rank_config() const = 0;
  // Of the ranks of this stage; with several, set before the first Forward and after every group
  // that broke. Not owned.
  virtual void SetCommunicator(comm::Communicator* communicator) = 0;
  // What its sums were asked to travel as, before SetCommunicator: a device whose ranks reach each
  // other by links of their own measures these where the communicator's were measured.
  virtual void SetAllReduce(const comm::AllReduceOptions& /*options*/) {}
  // With several ranks in the stage, all of which call, after SetCommunicator: what a device
  // exchanges its sums by is connected now and not in the next step. Returns how sums travel where
  // that is not as the communicator's policy says, else an empty policy. `known`, which is the same
  // on all ranks: what an earlier group of theirs returned, and holds again; empty: to be chosen.
  virtual absl::StatusOr<comm::AllReducePolicy> ConnectDevices(
      const comm::AllReducePolicy& /*known*/, ThreadPool* /*pool*/) {
    return comm::AllReducePolicy{};
  }
  // To the stages before and after; the same, with several stages.
  virtual void SetStageLink(comm::StageLink* link) = 0;
  // Whether Forward gives logits here: on rank 0 of the last stage.
  virtual bool has_logits() const = 0;
  // Tokens that went to each expert, all layers of the model (those of other stages are zeros);
  // empty for a dense model. The same on all ranks of a stage. Thread-safe.
  virtual ExpertLoad expert_load() const = 0;

  // For rank_config(), zeroed. RESOURCE_EXHAUSTED, naming the bytes, when memory is not to be had.
  virtual absl::StatusOr<std::unique_ptr<KvCache>> MakeKvCache(int64_t num_blocks,
                                                               int64_t block_size) const = 0;
  // After Reserve.
  virtual KvMemory kv_memory() const = 0;

  // Makes what steps within `limits` work in, and takes the memory for it now, so that a server
  // learns at its start whether there is enough. RESOURCE_EXHAUSTED, naming the bytes, when not.
  // Nothing ever shrinks.
  virtual absl::Status Reserve(const StepLimits& limits, ThreadPool* pool) = 0;

  // What Reserve(limits) takes of a model that has reserved nothing, and HostSampling::logits
  // beside it. Takes nothing; about, where a device's libraries have a share that is not known
  // before.
  virtual int64_t StepBytes(const StepLimits& /*limits*/) const { return 0; }

  // Rows of HostSampling::logits that ForwardAndSample of so many samples takes.
  virtual int64_t host_logits_rows(int64_t num_samples) const {
    return has_logits() ? num_samples : 0;
  }

  int64_t host_logits_bytes(int64_t num_samples) const {
    return host_logits_rows(num_samples) * config().vocab_size *
           static_cast<int64_t>(sizeof(float));
  }

  // Computes the plan's tokens, appends their keys and values to `cache`, and writes the logits of
  // plan.logits_indices to `logits` [num_samples, vocab_size] (not read or written unless
  // has_logits()). All ranks are given the same plan; an error of the communicator is returned as
  // it is, and the cache's contents are lost. The plan's sampling rows are not read. Not
  // thread-safe: one step at a time (workspaces are reused between calls). INVALID_ARGUMENT for a
  // plan that does not fit the model (ids, positions, slots, tables out of range): plans may come
  // over a wire. A step beyond what was reserved grows the workspaces or is RESOURCE_EXHAUSTED.
  // Scratch memory of single operations is taken in the step: std::bad_alloc when there is none.
  // `cache` is of this model's MakeKvCache().
  virtual absl::Status Forward(const StepPlan& plan, KvCache* cache, float* logits,
                               ThreadPool* pool) = 0;
  // Forward, and a token for each of plan.logits_indices as the plan's sampling rows say (no tokens
  // unless has_logits()). A device chooses by itself where a row asks for nothing that it does not
  // have, and gives the host the logits of the others alone. REQUIRES sampling rows whose ids are
  // in the vocabulary, one for each index.
  virtual absl::StatusOr<StepOutput> ForwardAndSample(const StepPlan& plan, KvCache* cache,
                                                      const HostSampling& host, ThreadPool* pool);
  // Ends waits of a step under way for other ranks that do not end with the communicator's: those
  // of a device. Thread-safe.
  virtual void Abort(const std::string& /*reason*/) {}
  // Not OK: why this process can compute nothing any more, ever. Who runs it is to start another.
  virtual absl::Status Health() const { return absl::OkStatus(); }
};

// What one token of the largest step takes, and one sequence of it: so much more would the cache
// have.
struct StepCosts {
  int64_t token_bytes = 0;
  int64_t seq_bytes = 0;
};
StepCosts CostsOf(const Model& model, const StepLimits& limits);

}  // namespace nibble::engine
