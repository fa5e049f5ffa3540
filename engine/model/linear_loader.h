// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From the modules of a checkpoint, in whatever form they are stored, to a Linear: reading a rank's
// share, quantizing, fusing, packing.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/channel_order.h"
#include "engine/model/linear.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/model/quantization_config.h"
#include "engine/model/safetensors.h"
#include "engine/model/shard.h"
#include "kernels/gemm/weight_packer.h"
#include "kernels/quant/int8_weight.h"

namespace nibble::engine {

// What a layer's weights become in memory.
enum class WeightForm {
  kDense,       // float, stored in the type of LoadOptions
  kInt4,        // 4 bit, int8 inputs
  kInt8,        // 8 bit, int8 inputs
  kInt4Floats,  // 4 bit, float inputs; as float32 where act-order would reorder these
};

// One of the checkpoint's modules that make up a linear layer.
struct LinearModule {
  std::string name;   // "model.layers.0.self_attn.q_proj"
  MatrixShare share;  // what of it this rank holds
  bool bias = false;
  // Of a module that is stored plain in one tensor with others: its [share.n, share.k].
  std::optional<TensorView> tensor;
  // How much of it a step of one token reads: of an expert less than 1, as LinearCounts says.
  double step_share = 1.0;
};

// What was loaded so far.
struct LinearCounts {
  int64_t dense = 0;  // modules of each kind
  int64_t folded = 0;
  int64_t integer = 0;
  int64_t int8 = 0;
  int64_t int4_floats = 0;
  int64_t expanded = 0;          // 4-bit weights as float32
  int64_t meant_for_floats = 0;  // stored for 16-bit activations, running with int8

  // What a step of one token reads of the layers loaded, as whole modules, whatever this rank's
  // share: the same on every rank of a stage. So an expert counts as the part of the tokens that
  // choose it, times the ranks that have others.
  double model_bytes = 0.0;

  void Add(const LinearCounts& other);
  int64_t total() const { return dense + folded + integer + int8 + int4_floats + expanded; }
};

// Not thread-safe; everything given outlives it.
class LinearLoader {
 public:
  // `total_bytes`: what this rank will read, for the progress.
  LinearLoader(const Checkpoint& checkpoint, const ModelConfig& config, const LoadOptions& options,
               const kernels::WeightPacker& packer, DType dtype, int64_t total_bytes,
               ThreadPool* pool)
      : checkpoint_(checkpoint),
        config_(config),
        options_(options),
        packer_(packer),
        dtype_(dtype),
        total_bytes_(total_bytes),
        pool_(pool) {}

  // A layer made of the shares of `modules`, one under the other, all of the same input channels.
  // Neighbours of one form become one part. Besides what is packed, memory holds these in their
  // stored type, and when quantizing a slice of rows as floats.
  absl::StatusOr<Linear> Load(const std::vector<LinearModule>& modules);
  // A module that is stored plain, in the form given.
  absl::StatusOr<Linear> LoadPlain(const LinearModule& module, WeightForm form);

  // How the checkpoint stores a module; nullptr: plain. INVALID_ARGUMENT when config.json and
  // tensors disagree.
  absl::StatusOr<const WeightScheme*> StoredScheme(const std::string& module) const;

  // A whole module as float32, whatever the checkpoint holds it in, and a layer of that. Rules for
  // all linear layers do not mean it where its tensor is plain. Not in the counts of forms.
  absl::StatusOr<std::vector<float>> LoadFloats(const LinearModule& module);
  absl::StatusOr<Linear> LoadFloatLayer(const LinearModule& module);

  // A loader for other layers at the same time on one more thread, which runs `pool` alone. What it
  // loaded is counted, and told as progress, by Join().
  LinearLoader Fork(ThreadPool* pool) const;
  void Join(const LinearLoader& fork);

  absl::StatusOr<std::vector<float>> LoadVector(const std::string& name, int64_t size);
  void Consumed(int64_t num_bytes);  // of the checkpoint, for the progress

  const LinearCounts& counts() const { return counts_; }

 private:
  // A module, how it is stored (nullptr: plain), and what it becomes.
  struct Source {
    const LinearModule* module = nullptr;
    const WeightScheme* scheme = nullptr;
    WeightForm form = WeightForm::kDense;
  };
  using Sources = std::span<const Source>;

  void Consumed(const TensorView& tensor, int64_t num_elements);
  absl::StatusOr<const TensorView*> PlainTensor(const LinearModule& module) const;
  absl::StatusOr<WeightForm> ChooseForm(const std::string& module,
                                        const WeightScheme* scheme) const;
  // Parts of `sources`, which all have one form.
  absl::Status Add(Sources sources, std::vector<Linear::Part>* parts);
  absl::Status AddDense(Sources sources, std::vector<Linear::Part>* parts);
  absl::Status AddInt4(Sources sources, std::vector<Linear::Part>* parts);
  absl::Status AddInt8(Sources sources, std::vector<Linear::Part>* parts);
  absl::StatusOr<StoredInt4> ReadInt4(const Source& source);
  absl::StatusOr<kernels::Int8Weight> ReadInt8(const Source& source);
  static std::vector<float> Expand(const StoredInt4& stored, ThreadPool* pool);
  // Rounds a plain module to nearest and keeps the share.
  template <typename Weight>
  absl::StatusOr<Weight> QuantizeModule(const LinearModule& module);
  absl::Status PackInt4(const StoredInt4& stored, const Source& first, int64_t num_modules,
                        std::vector<Linear::Part>* parts);
  absl::StatusOr<std::vector<float>> LoadBias(std::span<const LinearModule> modules);

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const LoadOptions& options_;
  const kernels::WeightPacker& packer_;
  const DType dtype_;
  const int64_t total_bytes_;
  ThreadPool* pool_;
  bool is_fork_ = false;
  int64_t bytes_done_ = 0;
  LinearCounts counts_;
};

}  // namespace nibble::engine
