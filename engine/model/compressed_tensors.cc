// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/compressed_tensors.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "nlohmann/json.hpp"

#include "base/check.h"
#include "engine/model/weight_share.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using kernels::Int8Weight;

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kPacked = ".weight_packed";
constexpr std::string_view kScale = ".weight_scale";
constexpr std::string_view kShape = ".weight_shape";
constexpr std::string_view kZeroPoint = ".weight_zero_point";
constexpr std::string_view kGroupIndex = ".weight_g_idx";

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

// Rows and columns of a tensor [.., stride] of scales.
absl::StatusOr<std::vector<float>> ReadScales(const TensorView& tensor, int64_t stride,
                                              const Range& rows, const Range& columns) {
  std::vector<float> scales(static_cast<size_t>(rows.size() * columns.size()));
  float* out = scales.data();
  for (int64_t row = rows.begin; row < rows.end; ++row, out += columns.size()) {
    const int64_t first = row * stride + columns.begin;
    NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, first, columns.size(), out));
    for (int64_t i = 0; i < columns.size(); ++i) {
      if (std::isfinite(out[i])) continue;
      return InvalidArgument("{}: tensor '{}': element {} is {}, must be finite", tensor.file,
                             tensor.name, first + i, out[i]);
    }
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

// What is read of a module, and the groups of scales that belong to it.
struct Part {
  std::string_view name;
  MatrixShare share;
  int64_t num_groups = 0;  // of the module
  Range groups;            // of these

  Part(std::string_view name_in, const MatrixShare& share_in, int64_t group_size)
      : name(name_in), share(share_in), num_groups((share.k + group_size - 1) / group_size) {
    groups = {share.columns.begin / group_size, (share.columns.end + group_size - 1) / group_size};
  }
};

absl::Status ReadPackedCodes(const Checkpoint& checkpoint, const Part& part, Int4Weight* weight) {
  const MatrixShare& share = part.share;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                          checkpoint.Get(Join(part.name, kPacked), {share.n, share.k / 8}));
  NIBBLE_RETURN_IF_ERROR(CheckDType(*tensor, DType::kI32));
  NIBBLE_RETURN_IF_ERROR(CheckShape(checkpoint, {.name = part.name, .n = share.n, .k = share.k}));
  const int64_t stored_row_bytes = share.k / 2;
  const uint8_t* rows = tensor->bytes.data() + share.rows.begin * stored_row_bytes;
  if (share.has_all_columns()) {
    weight->codes.assign(rows, rows + share.rows.size() * stored_row_bytes);
    return absl::OkStatus();
  }
  weight->codes.resize(static_cast<size_t>(weight->n * weight->row_bytes()));
  for (int64_t row = 0; row < weight->n; ++row) {
    CopyCodes(rows + row * stored_row_bytes, share.columns,
              weight->codes.data() + row * weight->row_bytes());
  }
  return absl::OkStatus();
}

// One signed byte a code, in -8..7.
absl::Status ReadByteCodes(const Checkpoint& checkpoint, const Part& part, Int4Weight* weight,
                           ThreadPool* pool) {
  const MatrixShare& share = part.share;
  const bool is_packed_name = checkpoint.Find(Join(part.name, kWeight)) == nullptr &&
                              checkpoint.Find(Join(part.name, kPacked)) != nullptr;
  NIBBLE_ASSIGN_OR_RETURN(
      const TensorView* tensor,
      checkpoint.Get(Join(part.name, is_packed_name ? kPacked : kWeight), {share.n, share.k}));
  NIBBLE_RETURN_IF_ERROR(CheckDType(*tensor, DType::kI8));
  const auto* stored = reinterpret_cast<const int8_t*>(tensor->bytes.data());
  const int64_t row_bytes = weight->row_bytes();
  weight->codes.assign(static_cast<size_t>(weight->n * row_bytes), 0);
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first_fault{kNone};
  pool->ParallelFor(weight->n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = (share.rows.begin + row) * share.k + share.columns.begin;
      for (int64_t column = 0; column < weight->k; ++column) {
        const int code = stored[first + column] + 8;
        if (code < 0 || code > 15) {
          int64_t seen = first_fault.load();
          while (first + column < seen &&
                 !first_fault.compare_exchange_weak(seen, first + column)) {
          }
          return;
        }
        weight->codes[static_cast<size_t>(row * row_bytes + column / 2)] |=
            static_cast<uint8_t>(column % 2 == 0 ? code : code << 4);
      }
    }
  });
  const int64_t fault = first_fault.load();
  if (fault == kNone) return absl::OkStatus();
  return InvalidArgument("{}: tensor '{}': element [{}, {}] is {}, 4-bit codes are -8..7",
                         tensor->file, tensor->name, fault / share.k, fault % share.k,
                         stored[fault]);
}

absl::Status ReadGroupScales(const Checkpoint& checkpoint, const Part& part, Int4Weight* weight) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                          checkpoint.Get(Join(part.name, kScale), {part.share.n, part.num_groups}));
  NIBBLE_ASSIGN_OR_RETURN(weight->scales,
                          ReadScales(*tensor, part.num_groups, part.share.rows, part.groups));
  return absl::OkStatus();
}

// As codes are stored: nibbles of zero + 8, packed along n; or bytes.
absl::Status ReadZeroPoints(const Checkpoint& checkpoint, const Part& part, bool packed,
                            Int4Weight* weight) {
  const int64_t stride = part.num_groups;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                          checkpoint.Get(Join(part.name, kZeroPoint),
                                         {packed ? (part.share.n + 7) / 8 : part.share.n, stride}));
  NIBBLE_RETURN_IF_ERROR(CheckDType(*tensor, packed ? DType::kI32 : DType::kI8));
  weight->zero_points.clear();
  for (int64_t row = part.share.rows.begin; row < part.share.rows.end; ++row) {
    for (int64_t group = part.groups.begin; group < part.groups.end; ++group) {
      int zero = 0;
      if (packed) {
        uint32_t word = 0;
        std::memcpy(&word, tensor->bytes.data() + (row / 8 * stride + group) * 4, 4);
        zero = static_cast<int>((word >> (4 * (row % 8))) & 15);
      } else {
        zero = static_cast<int8_t>(tensor->bytes[static_cast<size_t>(row * stride + group)]) + 8;
      }
      if (zero < 0 || zero > 15) {
        return InvalidArgument("{}: tensor '{}': element [{}, {}] is {}, zero points are -8..7",
                               tensor->file, tensor->name, row, group, zero - 8);
      }
      weight->zero_points.push_back(static_cast<uint8_t>(zero));
    }
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
  for (const std::string_view suffix : {kZeroPoint, kGroupIndex}) {
    if (const TensorView* tensor = checkpoint.Find(Join(module.name, suffix))) {
      return Unimplemented("{}: tensor '{}': {} not supported (supported: symmetric, in order)",
                           tensor->file, tensor->name,
                           suffix == kGroupIndex ? "act-order is" : "zero points are");
    }
  }
  Int4Weight weight = {.n = module.n, .k = module.k, .group_size = module.group_size};
  const Part part(module.name, MatrixShare::Whole(module.n, module.k), module.group_size);
  NIBBLE_RETURN_IF_ERROR(ReadPackedCodes(checkpoint, part, &weight));
  NIBBLE_RETURN_IF_ERROR(ReadGroupScales(checkpoint, part, &weight));
  return weight;
}

absl::StatusOr<StoredInt4> ReadCompressedInt4(const Checkpoint& checkpoint, std::string_view name,
                                              const MatrixShare& share, const WeightScheme& scheme,
                                              ThreadPool* pool) {
  const int64_t group_size = scheme.GroupSizeOf(share.k);
  const Part part(name, share, group_size);
  StoredInt4 stored;
  Int4Weight& weight = stored.weight;
  weight = ShapeOfShare(share, group_size);
  const bool packed = scheme.layout == WeightLayout::kPacked;
  if (packed) {
    NIBBLE_RETURN_IF_ERROR(
        CheckModule({.name = name, .n = share.n, .k = share.k, .group_size = group_size}));
    NIBBLE_RETURN_IF_ERROR(ReadPackedCodes(checkpoint, part, &weight));
  } else {
    NIBBLE_RETURN_IF_ERROR(ReadByteCodes(checkpoint, part, &weight, pool));
  }
  NIBBLE_RETURN_IF_ERROR(ReadGroupScales(checkpoint, part, &weight));
  if (!scheme.symmetric) {
    NIBBLE_RETURN_IF_ERROR(ReadZeroPoints(checkpoint, part, packed, &weight));
  } else if (const TensorView* tensor = checkpoint.Find(Join(name, kZeroPoint))) {
    return InvalidArgument("{}: tensor '{}', but config.json says that its weights are symmetric",
                           tensor->file, tensor->name);
  }
  if (const TensorView* tensor = checkpoint.Find(Join(name, ".input_scale"))) {
    return Unimplemented("{}: tensor '{}': static activation scales are not supported",
                         tensor->file, tensor->name);
  }
  const std::string g_idx_name = Join(name, kGroupIndex);
  if (scheme.act_order || checkpoint.Find(g_idx_name) != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const TensorView* g_idx, checkpoint.Get(g_idx_name, {share.k}));
    NIBBLE_RETURN_IF_ERROR(SortByGroup(*g_idx, share, group_size, &stored, pool));
  }
  return stored;
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
  return ReadInt8(checkpoint, module.name, MatrixShare::Whole(module.n, module.k));
}

absl::StatusOr<Int8Weight> ReadInt8(const Checkpoint& checkpoint, std::string_view name,
                                    const MatrixShare& share) {
  for (const std::string_view suffix : {kZeroPoint, std::string_view(".input_scale")}) {
    if (const TensorView* tensor = checkpoint.Find(Join(name, suffix))) {
      return Unimplemented(
          "{}: tensor '{}': {} not supported (supported: symmetric, dynamic)", tensor->file,
          tensor->name,
          suffix == ".input_scale" ? "static activation scales are" : "zero points are");
    }
  }
  Int8Weight weight = {.n = share.rows.size(), .k = share.columns.size()};
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* codes,
                          checkpoint.Get(Join(name, kWeight), {share.n, share.k}));
  NIBBLE_RETURN_IF_ERROR(CheckDType(*codes, DType::kI8));
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* scale,
                          checkpoint.Get(Join(name, kScale), {share.n, 1}));
  weight.codes.resize(static_cast<size_t>(share.num_elements()));
  for (int64_t row = 0; row < weight.n; ++row) {
    std::memcpy(weight.codes.data() + row * weight.k,
                codes->bytes.data() + (share.rows.begin + row) * share.k + share.columns.begin,
                static_cast<size_t>(weight.k));
  }
  NIBBLE_ASSIGN_OR_RETURN(weight.scales, ReadScales(*scale, 1, share.rows, {0, 1}));
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
