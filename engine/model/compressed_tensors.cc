// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/compressed_tensors.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "nlohmann/json.hpp"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;

constexpr std::string_view kPacked = ".weight_packed";
constexpr std::string_view kScale = ".weight_scale";
constexpr std::string_view kShape = ".weight_shape";

std::string Join(std::string_view module, std::string_view suffix) {
  return fmt::format("{}{}", module, suffix);
}

absl::Status CheckDType(const TensorView& tensor, DType wanted) {
  if (tensor.dtype == wanted) return absl::OkStatus();
  return InvalidArgument("{}: tensor '{}' is {}, must be {}", tensor.file, tensor.name,
                         ToString(tensor.dtype), ToString(wanted));
}

// weight_shape repeats what config.json says; a difference means that one of them is wrong.
absl::Status CheckShape(const Checkpoint& checkpoint, const PackedModule& module) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint.Get(Join(module.name, kShape), {2}));
  int64_t shape[2] = {};
  if (tensor->dtype == DType::kI32) {
    int32_t narrow[2] = {};
    std::memcpy(narrow, tensor->bytes.data(), sizeof(narrow));
    shape[0] = narrow[0];
    shape[1] = narrow[1];
  } else {
    NIBBLE_RETURN_IF_ERROR(CheckDType(*tensor, DType::kI64));
    std::memcpy(shape, tensor->bytes.data(), sizeof(shape));
  }
  if (shape[0] != module.n || shape[1] != module.k) {
    return InvalidArgument("{}: tensor '{}' says {}, config.json makes it {}", tensor->file,
                           tensor->name, ShapeToString(shape),
                           ShapeToString(std::vector<int64_t>{module.n, module.k}));
  }
  return absl::OkStatus();
}

absl::Status CheckModule(const PackedModule& module) {
  if (module.n < 0 || module.k < 0 || module.k % 8 != 0) {
    return InvalidArgument("module '{}': {} columns, must be a multiple of 8 to be packed",
                           module.name, module.k);
  }
  if (module.group_size < 1) {
    return InvalidArgument("module '{}': group size {}, must be positive", module.name,
                           module.group_size);
  }
  return absl::OkStatus();
}

}  // namespace

bool IsPackedInt4(const Checkpoint& checkpoint, std::string_view module) {
  return checkpoint.Find(Join(module, kPacked)) != nullptr;
}

absl::StatusOr<Int4Weight> ReadPackedInt4(const Checkpoint& checkpoint,
                                          const PackedModule& module) {
  NIBBLE_RETURN_IF_ERROR(CheckModule(module));
  for (const std::string_view suffix : {".weight_zero_point", ".weight_g_idx"}) {
    if (const TensorView* tensor = checkpoint.Find(Join(module.name, suffix))) {
      return Unimplemented("{}: tensor '{}': {} not supported (supported: symmetric, in order)",
                           tensor->file, tensor->name,
                           suffix == ".weight_g_idx" ? "act-order is" : "zero points are");
    }
  }
  Int4Weight weight;
  weight.n = module.n;
  weight.k = module.k;
  weight.group_size = module.group_size;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* packed,
                          checkpoint.Get(Join(module.name, kPacked), {module.n, module.k / 8}));
  NIBBLE_RETURN_IF_ERROR(CheckDType(*packed, DType::kI32));
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* scale, checkpoint.Get(Join(module.name, kScale),
                                                                  {module.n, weight.num_groups()}));
  NIBBLE_RETURN_IF_ERROR(CheckShape(checkpoint, module));

  weight.codes.assign(packed->bytes.begin(), packed->bytes.end());
  weight.scales.resize(static_cast<size_t>(scale->num_elements()));
  NIBBLE_RETURN_IF_ERROR(ReadFloats(*scale, 0, scale->num_elements(), weight.scales.data()));
  for (size_t i = 0; i < weight.scales.size(); ++i) {
    if (std::isfinite(weight.scales[i])) continue;
    return InvalidArgument("{}: tensor '{}': element {} is {}, must be finite", scale->file,
                           scale->name, i, weight.scales[i]);
  }
  return weight;
}

std::vector<TensorSpec> PackedInt4Specs(const PackedModule& module) {
  const int64_t num_groups = (module.k + module.group_size - 1) / module.group_size;
  return {
      {.name = Join(module.name, kPacked), .dtype = DType::kI32, .shape = {module.n, module.k / 8}},
      {.name = Join(module.name, kScale), .dtype = DType::kF32, .shape = {module.n, num_groups}},
      {.name = Join(module.name, kShape), .dtype = DType::kI64, .shape = {2}},
  };
}

absl::Status WritePackedInt4(std::string_view name, const Int4Weight& weight,
                             SafetensorsWriter* writer) {
  NIBBLE_RETURN_IF_ERROR(
      CheckModule({.name = name, .n = weight.n, .k = weight.k, .group_size = weight.group_size}));
  if (!weight.zero_points.empty()) {
    return InvalidArgument("module '{}' has zero points, the packed form is symmetric", name);
  }
  NIBBLE_RETURN_IF_ERROR(writer->Write(Join(name, kPacked), weight.codes));
  NIBBLE_RETURN_IF_ERROR(
      writer->Write(Join(name, kScale), {reinterpret_cast<const uint8_t*>(weight.scales.data()),
                                         weight.scales.size() * sizeof(float)}));
  const int64_t shape[2] = {weight.n, weight.k};
  return writer->Write(Join(name, kShape),
                       {reinterpret_cast<const uint8_t*>(shape), sizeof(shape)});
}

nlohmann::json QuantizationConfigJson(const QuantizationConfig& quantization) {
  nlohmann::json weights = {{"num_bits", 4},
                            {"type", "int"},
                            {"symmetric", true},
                            {"strategy", "group"},
                            {"group_size", quantization.group_size},
                            {"dynamic", false}};
  nlohmann::json activations = nullptr;
  if (quantization.activation_bits == 8) {
    activations = {{"num_bits", 8},
                   {"type", "int"},
                   {"symmetric", true},
                   {"strategy", "token"},
                   {"dynamic", true}};
  }
  nlohmann::json group = {{"targets", nlohmann::json::array({"Linear"})},
                          {"weights", std::move(weights)},
                          {"input_activations", std::move(activations)},
                          {"output_activations", nullptr},
                          {"format", "pack-quantized"}};
  return {
      {"quant_method", "compressed-tensors"}, {"format", "pack-quantized"},
      {"quantization_status", "compressed"},  {"config_groups", {{"group_0", std::move(group)}}},
      {"kv_cache_scheme", nullptr},           {"ignore", quantization.ignore}};
}

}  // namespace nibble::engine
