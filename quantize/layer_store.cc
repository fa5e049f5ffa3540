// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/layer_store.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>
#include <vector>

#include "base/float16.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/compressed_tensors.h"
#include "engine/model/safetensors_writer.h"
#include "engine/model/tensor_convert.h"
#include "quantize/block_source.h"
#include "quantize/files.h"

namespace nibble::quantize {
namespace {

using engine::Checkpoint;
using engine::SafetensorsWriter;
using engine::TensorSpec;
using kernels::Int4Weight;
using kernels::Int8Weight;

constexpr std::string_view kReportFile = "report.json";
constexpr size_t kMaxReportBytes = size_t{64} << 20;

template <typename T>
bool Narrow(const std::vector<float>& values, T (*narrow)(float), std::vector<uint8_t>* bytes) {
  std::vector<T> out;
  out.reserve(values.size());
  for (const float value : values) {
    out.push_back(narrow(value));
    if (ToFloat(out.back()) != value) return false;
  }
  bytes->resize(out.size() * sizeof(T));
  std::memcpy(bytes->data(), out.data(), bytes->size());
  return true;
}

// A norm, a bias or a matrix that stays as it is, in the type it will have on disk.
struct Plain {
  TensorSpec spec;
  std::vector<uint8_t> bytes;
};

absl::StatusOr<Plain> MakeVector(const std::string& name, const std::vector<float>& values,
                                 const Checkpoint& source) {
  NIBBLE_ASSIGN_OR_RETURN(const engine::TensorView* tensor, source.Get(name));
  Plain vector;
  vector.spec = {
      .name = name, .dtype = tensor->dtype, .shape = {static_cast<int64_t>(values.size())}};
  if (tensor->dtype == DType::kBf16 && Narrow(values, ToBFloat16, &vector.bytes)) return vector;
  if (tensor->dtype == DType::kF16 && Narrow(values, ToFloat16, &vector.bytes)) return vector;
  vector.spec.dtype = DType::kF32;
  vector.bytes.resize(values.size() * sizeof(float));
  std::memcpy(vector.bytes.data(), values.data(), vector.bytes.size());
  return vector;
}

absl::StatusOr<std::vector<Plain>> MakeVectors(const BlockWeights& weights,
                                               const Checkpoint& source) {
  std::vector<Plain> vectors;
  const auto add = [&](const std::string& name, const std::vector<float>& values) -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(Plain vector, MakeVector(name, values, source));
    vectors.push_back(std::move(vector));
    return absl::OkStatus();
  };
  for (const Norm& norm : Norms(weights)) {
    NIBBLE_RETURN_IF_ERROR(add(norm.name, weights.*norm.member));
  }
  for (const Matrix* matrix : Matrices(weights)) {
    if (!matrix->bias.empty()) NIBBLE_RETURN_IF_ERROR(add(matrix->name + ".bias", matrix->bias));
  }
  return vectors;
}

// Byte by byte as the source has them, by the names of published checkpoints.
absl::StatusOr<std::vector<Plain>> CopyUnrounded(const BlockWeights& weights,
                                                 const Checkpoint& source) {
  std::vector<Plain> copies;
  for (const Matrix* matrix : UnroundedMatrices(weights)) {
    NIBBLE_ASSIGN_OR_RETURN(const engine::TensorView* tensor,
                            FindUnrounded(source, weights, *matrix));
    copies.push_back({.spec = {.name = matrix->name + ".weight",
                               .dtype = tensor->dtype,
                               .shape = {matrix->n, matrix->k}},
                      .bytes = {tensor->bytes.begin(), tensor->bytes.end()}});
  }
  return copies;
}

std::vector<TensorSpec> MatrixSpecs(const std::string& name, const QuantizedWeight& weight) {
  if (const auto* int8 = std::get_if<Int8Weight>(&weight)) {
    return engine::Int8Specs({.name = name, .n = int8->n, .k = int8->k});
  }
  const auto& int4 = std::get<Int4Weight>(weight);
  return engine::PackedInt4Specs(
      {.name = name, .n = int4.n, .k = int4.k, .group_size = int4.group_size});
}

absl::Status WriteMatrix(const std::string& name, const QuantizedWeight& weight,
                         SafetensorsWriter* writer) {
  if (const auto* int8 = std::get_if<Int8Weight>(&weight)) {
    return engine::WriteInt8(name, *int8, writer);
  }
  return engine::WritePackedInt4(name, std::get<Int4Weight>(weight), writer);
}

absl::StatusOr<std::vector<float>> ReadVector(const Checkpoint& checkpoint, const std::string& name,
                                              int64_t size, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const engine::TensorView* tensor, checkpoint.Get(name, {size}));
  return engine::TensorToFloats(*tensor, pool);
}

}  // namespace

absl::Status WriteLayer(const std::string& dir, const QuantizedBlock& block,
                        const LayerReport& report, const Checkpoint& source) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Plain> plain, MakeVectors(block.weights, source));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Plain> unrounded, CopyUnrounded(block.weights, source));
  std::move(unrounded.begin(), unrounded.end(), std::back_inserter(plain));
  const auto matrices = Matrices(block.weights);
  std::vector<TensorSpec> specs;
  for (const Plain& tensor : plain) specs.push_back(tensor.spec);
  for (size_t i = 0; i < matrices.size(); ++i) {
    for (TensorSpec& spec : MatrixSpecs(matrices[i]->name, block.matrices[i])) {
      specs.push_back(std::move(spec));
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(dir, std::move(specs), {.max_shard_bytes = INT64_MAX}));
  for (const Plain& tensor : plain) {
    NIBBLE_RETURN_IF_ERROR(writer.Write(tensor.spec.name, tensor.bytes));
  }
  for (size_t i = 0; i < matrices.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(WriteMatrix(matrices[i]->name, block.matrices[i], &writer));
  }
  NIBBLE_RETURN_IF_ERROR(writer.Finish());
  return WriteFile(fmt::format("{}/{}", dir, kReportFile), ToJson(report).dump(1));
}

absl::StatusOr<LayerReport> ReadLayerReport(const std::string& dir) {
  const std::string path = fmt::format("{}/{}", dir, kReportFile);
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxReportBytes));
  absl::StatusOr<nlohmann::json> json = ParseJson(text);
  if (!json.ok()) return Annotate(json.status(), path);
  absl::StatusOr<LayerReport> report = LayerReportFromJson(*json);
  if (!report.ok()) return Annotate(report.status(), path);
  return report;
}

absl::StatusOr<QuantizedBlock> ReadLayer(const std::string& dir, const engine::ModelConfig& config,
                                         int64_t layer_idx, Scheme scheme, int64_t group_size,
                                         ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
  QuantizedBlock block;
  block.weights = EmptyBlock(config, layer_idx);
  for (const Norm& norm : Norms(block.weights)) {
    std::vector<float>& values = block.weights.*norm.member;
    const auto size = static_cast<int64_t>(values.size());
    NIBBLE_ASSIGN_OR_RETURN(values, ReadVector(checkpoint, norm.name, size, pool));
  }
  for (Matrix* matrix : UnroundedMatrices(block.weights)) {
    NIBBLE_ASSIGN_OR_RETURN(const engine::TensorView* tensor,
                            checkpoint.Get(matrix->name + ".weight", {matrix->n, matrix->k}));
    NIBBLE_ASSIGN_OR_RETURN(matrix->weight, engine::TensorToFloats(*tensor, pool));
  }
  const auto matrices = Matrices(block.weights);
  block.matrices.resize(matrices.size());
  for (size_t i = 0; i < matrices.size(); ++i) {
    Matrix& matrix = *matrices[i];
    if (!matrix.bias.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(matrix.bias,
                              ReadVector(checkpoint, matrix.name + ".bias", matrix.n, pool));
    }
    if (WeightBits(scheme) == 8) {
      NIBBLE_ASSIGN_OR_RETURN(
          block.matrices[i],
          engine::ReadInt8(checkpoint, {.name = matrix.name, .n = matrix.n, .k = matrix.k}));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(
        block.matrices[i],
        engine::ReadPackedInt4(checkpoint,
                               {.name = matrix.name,
                                .n = matrix.n,
                                .k = matrix.k,
                                .group_size = SchemeOf(scheme, group_size, matrix.k).group_size}));
  }
  return block;
}

}  // namespace nibble::quantize
