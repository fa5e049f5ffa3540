// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/source_check.h"

#include <filesystem>
#include <initializer_list>

#include "engine/model/compressed_tensors.h"
#include "quantize/block.h"
#include "quantize/block_source.h"

namespace nibble::quantize {
namespace {

using engine::Checkpoint;
using engine::ModelConfig;
using engine::TensorView;

absl::Status CheckTensor(const Checkpoint& checkpoint, const std::string& name,
                         std::initializer_list<int64_t> shape) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint.Get(name, shape));
  return ReadFloats(*tensor, 0, 0, nullptr);  // its type
}

absl::Status CheckMatrix(const Checkpoint& checkpoint, const BlockWeights& block, size_t matrix_idx,
                         const QuantizeOptions& options) {
  const Matrix& matrix = *Matrices(block)[matrix_idx];
  if (engine::IsPackedInt4(checkpoint, matrix.name)) {
    return InvalidArgument(
        "{}: module '{}' is quantized already; start from the full-precision model",
        checkpoint.dir(), matrix.name);
  }
  const std::string name = matrix.name + ".weight";
  NIBBLE_ASSIGN_OR_RETURN(const WeightSource source, FindWeight(checkpoint, block, matrix_idx));
  NIBBLE_RETURN_IF_ERROR(ReadFloats(*source.tensor, 0, 0, nullptr));  // its type
  if (!matrix.bias.empty()) {
    NIBBLE_RETURN_IF_ERROR(CheckTensor(checkpoint, matrix.name + ".bias", {matrix.n}));
  }
  const int64_t group_size = SchemeOf(options.scheme, options.group_size, matrix.k).group_size;
  if (matrix.k % group_size != 0) {
    return InvalidArgument(
        "{}: tensor '{}' has {} input channels, not a multiple of the group size {}",
        checkpoint.dir(), name, matrix.k, group_size);
  }
  if (matrix.k % 8 != 0) {  // codes are packed in words of eight
    return InvalidArgument("{}: tensor '{}' has {} input channels, must be a multiple of 8",
                           checkpoint.dir(), name, matrix.k);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSource(const Checkpoint& checkpoint, const ModelConfig& config,
                         const QuantizeOptions& options) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const BlockWeights block = EmptyBlock(config, layer);
    for (const Norm& norm : Norms(block)) {
      const auto size = static_cast<int64_t>((block.*norm.member).size());
      NIBBLE_RETURN_IF_ERROR(CheckTensor(checkpoint, norm.name, {size}));
    }
    for (size_t i = 0; i < Matrices(block).size(); ++i) {
      NIBBLE_RETURN_IF_ERROR(CheckMatrix(checkpoint, block, i, options));
    }
    for (const Matrix* matrix : UnroundedMatrices(block)) {
      NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, FindUnrounded(checkpoint, block, *matrix));
      NIBBLE_RETURN_IF_ERROR(ReadFloats(*tensor, 0, 0, nullptr));
    }
  }
  NIBBLE_RETURN_IF_ERROR(CheckTensor(checkpoint, "model.embed_tokens.weight",
                                     {config.vocab_size, config.hidden_size}));
  NIBBLE_RETURN_IF_ERROR(CheckTensor(checkpoint, "model.norm.weight", {config.hidden_size}));
  if (config.tie_word_embeddings) return absl::OkStatus();
  return CheckTensor(checkpoint, "lm_head.weight", {config.vocab_size, config.hidden_size});
}

absl::Status CheckFolders(const std::string& source, const std::string& output) {
  namespace fs = std::filesystem;
  if (output.empty()) return InvalidArgument("the output folder's name is empty");
  std::error_code error;
  const std::string from = fs::weakly_canonical(fs::absolute(source, error), error).string() + "/";
  const std::string to = fs::weakly_canonical(fs::absolute(output, error), error).string() + "/";
  if (from.starts_with(to)) {
    return InvalidArgument("{}: writing here would replace the source {}", output, source);
  }
  return absl::OkStatus();
}

}  // namespace nibble::quantize
