// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/block_source.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "fmt/format.h"

namespace nibble::quantize {
namespace {

using engine::Checkpoint;
using engine::ModelConfig;
using engine::TensorView;

constexpr int64_t kElementsPerPiece = 1 << 16;

std::string MlpPrefix(const BlockWeights& block) {
  return fmt::format("model.layers.{}.mlp.", block.layer_idx);
}

absl::StatusOr<std::vector<float>> LoadFinite(const TensorView& tensor, int64_t first,
                                              int64_t count, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, first, 0, nullptr));  // its type
  std::vector<float> values(static_cast<size_t>(count));
  pool->ParallelFor(count, kElementsPerPiece, [&](int64_t begin, int64_t end) {
    // The type and the range were checked.
    (void)ReadFloats(tensor, first + begin, end - begin, values.data() + begin);
  });
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    return InvalidArgument("{}: tensor '{}': element {} is {}, must be finite", tensor.file,
                           tensor.name, static_cast<size_t>(first) + i, values[i]);
  }
  return values;
}

absl::StatusOr<std::vector<float>> LoadVector(const Checkpoint& checkpoint, const std::string& name,
                                              int64_t size, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint.Get(name, {size}));
  return LoadFinite(*tensor, 0, size, pool);
}

absl::Status LoadMatrix(const Checkpoint& checkpoint, const BlockWeights& block, size_t matrix_idx,
                        Matrix* matrix, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const WeightSource source, FindWeight(checkpoint, block, matrix_idx));
  NIBBLE_ASSIGN_OR_RETURN(matrix->weight,
                          LoadFinite(*source.tensor, source.first, matrix->n * matrix->k, pool));
  if (matrix->bias.empty()) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(matrix->bias,
                          LoadVector(checkpoint, matrix->name + ".bias", matrix->n, pool));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightSource> FindWeight(const Checkpoint& checkpoint, const BlockWeights& block,
                                        size_t matrix_idx) {
  const Matrix& matrix = *Matrices(block)[matrix_idx];
  const std::string name = matrix.name + ".weight";
  const std::string prefix = MlpPrefix(block) + "experts.";
  const bool is_down = SiteOfMatrix(matrix_idx) == Site::kDown;
  const std::string fused = prefix + (is_down ? "down_proj" : "gate_up_proj");
  const int64_t expert =
      static_cast<int64_t>((matrix_idx - kAttentionMatrices) / kFeedForwardMatrices);
  const bool is_fused = block.moe && matrix_idx >= kAttentionMatrices &&
                        expert < block.moe->num_routed() && checkpoint.Find(name) == nullptr &&
                        checkpoint.Find(fused) != nullptr;
  if (!is_fused) {
    NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint.Get(name, {matrix.n, matrix.k}));
    return WeightSource{.tensor = tensor};
  }
  const int64_t rows = is_down ? matrix.n : 2 * matrix.n;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                          checkpoint.Get(fused, {block.moe->num_routed(), rows, matrix.k}));
  const bool is_up = (matrix_idx - kAttentionMatrices) % kFeedForwardMatrices == 1;
  return WeightSource{.tensor = tensor,
                      .first = (expert * rows + (is_up ? matrix.n : 0)) * matrix.k};
}

absl::StatusOr<const TensorView*> FindUnrounded(const Checkpoint& checkpoint,
                                                const BlockWeights& block, const Matrix& matrix) {
  std::string name = matrix.name + ".weight";
  const std::string fused = MlpPrefix(block) + "gate.weight";
  const bool is_router = &matrix == &block.moe->router;
  if (is_router && checkpoint.Find(name) == nullptr && checkpoint.Find(fused) != nullptr) {
    name = fused;
  }
  return checkpoint.Get(name, {matrix.n, matrix.k});
}

std::vector<std::string> TensorNames(const Checkpoint& checkpoint, const BlockWeights& block) {
  std::vector<std::string> names;
  for (const Norm& norm : Norms(block)) names.push_back(norm.name);
  const auto matrices = Matrices(block);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto source = FindWeight(checkpoint, block, i);
    if (source.ok()) names.push_back(source->tensor->name);
    if (!matrices[i]->bias.empty()) names.push_back(matrices[i]->name + ".bias");
  }
  for (const Matrix* matrix : UnroundedMatrices(block)) {
    const auto tensor = FindUnrounded(checkpoint, block, *matrix);
    if (tensor.ok()) names.push_back((*tensor)->name);
  }
  return names;
}

absl::StatusOr<BlockWeights> LoadWithoutExperts(const Checkpoint& checkpoint,
                                                const ModelConfig& config, int64_t layer_idx,
                                                ThreadPool* pool) {
  BlockWeights block = EmptyBlock(config, layer_idx);
  for (const Norm& norm : Norms(block)) {
    std::vector<float>& values = block.*norm.member;
    const auto size = static_cast<int64_t>(values.size());
    NIBBLE_ASSIGN_OR_RETURN(values, LoadVector(checkpoint, norm.name, size, pool));
  }
  const auto matrices = Matrices(block);
  const size_t num_loaded = block.moe ? kAttentionMatrices : matrices.size();
  for (size_t i = 0; i < num_loaded; ++i) {
    NIBBLE_RETURN_IF_ERROR(LoadMatrix(checkpoint, block, i, matrices[i], pool));
  }
  for (Matrix* matrix : UnroundedMatrices(block)) {
    NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, FindUnrounded(checkpoint, block, *matrix));
    NIBBLE_ASSIGN_OR_RETURN(matrix->weight, LoadFinite(*tensor, 0, matrix->n * matrix->k, pool));
  }
  return block;
}

absl::StatusOr<FeedForward> LoadExpert(const Checkpoint& checkpoint, const BlockWeights& block,
                                       size_t expert_idx, ThreadPool* pool) {
  FeedForward expert = block.moe->experts[expert_idx];
  size_t matrix_idx = kAttentionMatrices + expert_idx * kFeedForwardMatrices;
  for (Matrix* matrix : {&expert.gate, &expert.up, &expert.down}) {
    NIBBLE_RETURN_IF_ERROR(LoadMatrix(checkpoint, block, matrix_idx++, matrix, pool));
  }
  return expert;
}

absl::StatusOr<BlockWeights> LoadBlock(const Checkpoint& checkpoint, const ModelConfig& config,
                                       int64_t layer_idx, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(BlockWeights block,
                          LoadWithoutExperts(checkpoint, config, layer_idx, pool));
  if (!block.moe) return block;
  for (size_t e = 0; e < block.moe->experts.size(); ++e) {
    NIBBLE_ASSIGN_OR_RETURN(block.moe->experts[e], LoadExpert(checkpoint, block, e, pool));
  }
  return block;
}

}  // namespace nibble::quantize
