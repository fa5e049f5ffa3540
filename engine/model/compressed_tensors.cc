// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/compressed_tensors.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "nlohmann/json.hpp"

#include "base/check.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using kernels::Int8Weight;

constexpr std::string_view kWeight = ".weight";
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

template <typename T>
std::span<const uint8_t> Bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
}

absl::StatusOr<std::vector<float>> ReadScales(const TensorView& tensor) {
  std::vector<float> scales(static_cast<size_t>(tensor.num_elements()));
  NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, 0, tensor.num_elements(), scales.data()));
  for (size_t i = 0; i < scales.size(); ++i) {
    if (std::isfinite(scales[i])) continue;
    return InvalidArgument("{}: tensor '{}': element {} is {}, must be finite", tensor.file,
                           tensor.name, i, scales[i]);
  }
  return scales;
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
  NIBBLE_ASSIGN_OR_RETURN(weight.scales, ReadScales(*scale));
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
  NIBBLE_RETURN_IF_ERROR(writer->Write(Join(name, kScale), Bytes(weight.scales)));
  const int64_t shape[2] = {weight.n, weight.k};
  return writer->Write(Join(name, kShape),
                       {reinterpret_cast<const uint8_t*>(shape), sizeof(shape)});
}

absl::StatusOr<Int8Weight> ReadInt8(const Checkpoint& checkpoint, const Int8Module& module) {
  for (const std::string_view suffix : {".weight_zero_point", ".input_scale"}) {
    if (const TensorView* tensor = checkpoint.Find(Join(module.name, suffix))) {
      return Unimplemented(
          "{}: tensor '{}': {} not supported (supported: symmetric, dynamic)", tensor->file,
          tensor->name,
          suffix == ".input_scale" ? "static activation scales are" : "zero points are");
    }
  }
  Int8Weight weight = {.n = module.n, .k = module.k};
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* codes,
                          checkpoint.Get(Join(module.name, kWeight), {module.n, module.k}));
  NIBBLE_RETURN_IF_ERROR(CheckDType(*codes, DType::kI8));
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* scale,
                          checkpoint.Get(Join(module.name, kScale), {module.n, 1}));
  weight.codes.resize(codes->bytes.size());
  std::memcpy(weight.codes.data(), codes->bytes.data(), codes->bytes.size());
  NIBBLE_ASSIGN_OR_RETURN(weight.scales, ReadScales(*scale));
  return weight;
}

std::vector<TensorSpec> Int8Specs(const Int8Module& module) {
  return {
      {.name = Join(module.name, kWeight), .dtype = DType::kI8, .shape = {module.n, module.k}},
      {.name = Join(module.name, kScale), .dtype = DType::kF32, .shape = {module.n, 1}},
  };
}

absl::Status WriteInt8(std::string_view name, const Int8Weight& weight, SafetensorsWriter* writer) {
  NIBBLE_RETURN_IF_ERROR(writer->Write(Join(name, kWeight), Bytes(weight.codes)));
  return writer->Write(Join(name, kScale), Bytes(weight.scales));
}

nlohmann::json QuantizationConfigJson(const CheckpointScheme& scheme) {
  const bool grouped = scheme.weight_bits == 4 && scheme.group_size > 0;
  const std::string_view format = scheme.weight_bits == 4 ? "pack-quantized" : "int-quantized";
  NIBBLE_CHECK(scheme.weight_bits == 4 || scheme.weight_bits == 8);
  NIBBLE_CHECK(scheme.activation_bits == 8 || scheme.weight_bits == 4);
  nlohmann::json weights = {{"num_bits", scheme.weight_bits},
                            {"type", "int"},
                            {"symmetric", true},
                            {"strategy", grouped ? "group" : "channel"},
                            {"group_size", nullptr},
                            {"dynamic", false}};
  if (grouped) weights["group_size"] = scheme.group_size;
  nlohmann::json activations = nullptr;
  if (scheme.activation_bits == 8) {
    activations = {{"num_bits", 8},       {"type", "int"},         {"symmetric", true},
                   {"strategy", "token"}, {"group_size", nullptr}, {"dynamic", true}};
  }
  nlohmann::json group = {{"targets", nlohmann::json::array({"Linear"})},
                          {"weights", std::move(weights)},
                          {"input_activations", std::move(activations)},
                          {"output_activations", nullptr},
                          {"format", format}};
  return {
      {"quant_method", "compressed-tensors"}, {"format", format},
      {"quantization_status", "compressed"},  {"config_groups", {{"group_0", std::move(group)}}},
      {"kv_cache_scheme", nullptr},           {"ignore", scheme.ignore}};
}

}  // namespace nibble::engine
