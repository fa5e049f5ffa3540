// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/linear_loader.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/aligned_buffer.h"
#include "engine/model/compressed_tensors.h"
#include "engine/model/qweight.h"
#include "engine/model/tensor_convert.h"
#include "kernels/gemm/gemm.h"
#include "kernels/quant/int4_weight.h"
#include "kernels/quant/rtn.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using kernels::Int8Weight;
using kernels::PackedWeight;
using kernels::ScaleForm;

template <typename T>
void Append(const std::vector<T>& from, std::vector<T>* to) {
  to->insert(to->end(), from.begin(), from.end());
}

// Puts the rows of `part` under those of `whole`.
void AppendRows(Int4Weight part, Int4Weight* whole) {
  if (whole->n == 0) {
    *whole = std::move(part);
    return;
  }
  const auto fill_zero_points = [](Int4Weight* weight) {
    weight->zero_points.resize(static_cast<size_t>(weight->n * weight->num_groups()), 8);
  };
  if (!part.zero_points.empty() || !whole->zero_points.empty()) {
    fill_zero_points(whole);
    fill_zero_points(&part);
  }
  whole->n += part.n;
  Append(part.codes, &whole->codes);
  Append(part.scales, &whole->scales);
  Append(part.zero_points, &whole->zero_points);
}

void AppendRows(Int8Weight part, Int8Weight* whole) {
  if (whole->n == 0) {
    *whole = std::move(part);
    return;
  }
  whole->n += part.n;
  Append(part.codes, &whole->codes);
  Append(part.scales, &whole->scales);
}

absl::StatusOr<Int4Weight> Quantize(const float* rows, int64_t n, int64_t k, ThreadPool* pool,
                                    const Int4Weight*) {
  return kernels::QuantizeRtn(rows, n, k, {}, pool);
}
absl::StatusOr<Int8Weight> Quantize(const float* rows, int64_t n, int64_t k, ThreadPool* pool,
                                    const Int8Weight*) {
  return kernels::QuantizeInt8(rows, n, k, pool);
}

// Rounds to nearest, a slice of rows at a time: rows do not depend on each other, and a head's
// floats would be twice its tensor.
template <typename Weight>
absl::StatusOr<Weight> QuantizeTensor(const TensorView& tensor, int64_t n, int64_t k,
                                      ThreadPool* pool) {
  constexpr int64_t kSliceElements = int64_t{1} << 24;  // 64 MiB of floats
  const int64_t rows_per_slice = std::clamp<int64_t>(kSliceElements / k, 1, n);
  std::vector<float> values(static_cast<size_t>(rows_per_slice * k));
  Weight whole;
  for (int64_t row = 0; row < n; row += rows_per_slice) {
    const int64_t num_rows = std::min(rows_per_slice, n - row);
    NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, row * k, num_rows * k, values.data()));
    absl::StatusOr<Weight> slice = Quantize(values.data(), num_rows, k, pool, &whole);
    if (!slice.ok()) {
      return Annotate(slice.status(), fmt::format("{}, rows from {}", tensor.name, row));
    }
    AppendRows(*std::move(slice), &whole);
  }
  return whole;
}

// The values as floats in the checkpoint's order of channels: what dequantizing in Python gives.
// REQUIRES: a channel order.
AlignedBuffer<float> Expand(const StoredInt4& stored, ThreadPool* pool) {
  const Int4Weight& weight = stored.weight;
  AlignedBuffer<float> values(static_cast<size_t>(weight.n * weight.k));
  pool->ParallelFor(weight.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < weight.k; ++column) {
        const int64_t channel = stored.channel_order[static_cast<size_t>(column)];
        values[static_cast<size_t>(row * weight.k + channel)] = weight.Dequantize(row, column);
      }
    }
  });
  return values;
}

}  // namespace

absl::StatusOr<const WeightScheme*> LinearLoader::StoredScheme(const std::string& module) const {
  const TensorView* plain = checkpoint_.Find(module + ".weight");
  const TensorView* packed = checkpoint_.Find(module + ".weight_packed");
  if (packed == nullptr) packed = checkpoint_.Find(module + ".qweight");
  if (packed == nullptr && plain != nullptr && plain->dtype == DType::kI8) packed = plain;
  const WeightScheme* scheme = nullptr;
  if (config_.quantization.has_value()) {
    NIBBLE_ASSIGN_OR_RETURN(scheme, config_.quantization->Find(module));
    if (config_.quantization->tensors_decide && packed == nullptr && plain != nullptr) {
      return nullptr;
    }
  }
  if (scheme == nullptr && packed != nullptr) {
    return InvalidArgument("{}: tensor '{}' is quantized, but config.json {}", packed->file,
                           packed->name,
                           config_.quantization.has_value() ? fmt::format("leaves {} plain", module)
                                                            : "has no quantization_config");
  }
  if (scheme != nullptr && packed != nullptr && plain != nullptr && packed != plain) {
    return InvalidArgument("{}: {} is stored twice: tensors '{}' and '{}'", packed->file, module,
                           packed->name, plain->name);
  }
  return scheme;
}

absl::StatusOr<WeightForm> LinearLoader::ChooseForm(const std::string& module,
                                                    const WeightScheme* scheme) const {
  const auto refuse = [&](std::string_view option) {
    return InvalidArgument(
        "--quantization {}: {} is stored in {} bits already; quantize a full-precision checkpoint",
        option, module, scheme->weight_bits);
  };
  // What the author of a quantized checkpoint left plain stays so.
  if (scheme == nullptr && config_.quantization.has_value()) return WeightForm::kDense;
  const bool stored_int8 = scheme != nullptr && scheme->weight_bits == 8;
  switch (options_.quantization) {
    case Quantization::kNone:
      if (scheme == nullptr) return WeightForm::kDense;
      return stored_int8 ? WeightForm::kInt8 : WeightForm::kInt4;
    case Quantization::kW4A8:
      if (stored_int8) return refuse("w4a8");
      return WeightForm::kInt4;
    case Quantization::kW4A16:
      if (stored_int8) return refuse("w4a16");
      return WeightForm::kInt4Floats;
    case Quantization::kW8A8:
      if (scheme != nullptr && !stored_int8) return refuse("w8a8");
      return WeightForm::kInt8;
  }
  return WeightForm::kDense;
}

absl::StatusOr<Linear> LinearLoader::Load(const std::vector<LinearModule>& modules, int64_t k) {
  std::vector<Source> sources;
  for (const LinearModule& module : modules) {
    Source source = {.module = &module};
    NIBBLE_ASSIGN_OR_RETURN(source.scheme, StoredScheme(module.name));
    NIBBLE_ASSIGN_OR_RETURN(source.form, ChooseForm(module.name, source.scheme));
    sources.push_back(source);
  }
  std::vector<Linear::Part> parts;
  for (size_t begin = 0; begin < sources.size();) {
    size_t end = begin + 1;
    while (end < sources.size() && sources[end].form == sources[begin].form) ++end;
    const Sources alike(sources.data() + begin, end - begin);
    switch (sources[begin].form) {
      case WeightForm::kDense:
        NIBBLE_RETURN_IF_ERROR(AddDense(alike, k, &parts));
        break;
      case WeightForm::kInt4:
      case WeightForm::kInt4Floats:
        NIBBLE_RETURN_IF_ERROR(AddInt4(alike, k, &parts));
        break;
      case WeightForm::kInt8:
        NIBBLE_RETURN_IF_ERROR(AddInt8(alike, k, &parts));
        break;
    }
    begin = end;
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> bias, LoadBias(modules));
  return Linear(std::move(parts), std::move(bias));
}

absl::StatusOr<Linear> LinearLoader::LoadPlain(const LinearModule& module, int64_t k,
                                               WeightForm form) {
  const Source source = {.module = &module, .form = form};
  const LinearCounts counts = counts_;
  std::vector<Linear::Part> parts;
  switch (form) {
    case WeightForm::kDense:
      NIBBLE_RETURN_IF_ERROR(AddDense({&source, 1}, k, &parts));
      break;
    case WeightForm::kInt4:
    case WeightForm::kInt4Floats:
      NIBBLE_RETURN_IF_ERROR(AddInt4({&source, 1}, k, &parts));
      break;
    case WeightForm::kInt8:
      NIBBLE_RETURN_IF_ERROR(AddInt8({&source, 1}, k, &parts));
      break;
  }
  counts_ = counts;
  return Linear(std::move(parts), {});
}

absl::Status LinearLoader::AddDense(Sources sources, int64_t k, std::vector<Linear::Part>* parts) {
  int64_t n = 0;
  for (const Source& source : sources) n += source.module->n;
  const auto row_bytes = static_cast<size_t>(k) * SizeOf(dtype_);
  AlignedBuffer<uint8_t> rows(static_cast<size_t>(n) * row_bytes);
  uint8_t* next = rows.data();
  for (const Source& source : sources) {
    const LinearModule& module = *source.module;
    NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                            checkpoint_.Get(module.name + ".weight", {module.n, k}));
    NIBBLE_RETURN_IF_ERROR(ConvertTensor(*tensor, dtype_, next, pool_));
    next += static_cast<size_t>(module.n) * row_bytes;
    Consumed(static_cast<int64_t>(tensor->bytes.size()));
    ++counts_.dense;
  }
  auto packed = kernels::PackDense(rows.data(), dtype_, n, k, dtype_, options_.isa, pool_);
  if (!packed.ok()) return Annotate(packed.status(), sources.front().module->name);
  parts->push_back({.weight = *std::move(packed)});
  return absl::OkStatus();
}

absl::Status LinearLoader::AddInt4(Sources sources, int64_t k, std::vector<Linear::Part>* parts) {
  StoredInt4 whole;
  size_t first = 0;  // module of `whole`
  for (size_t i = 0; i < sources.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(StoredInt4 stored, ReadInt4(sources[i], k));
    const bool alike = stored.weight.group_size == whole.weight.group_size &&
                       stored.channel_order == whole.channel_order;
    if (i > first && !alike) {
      NIBBLE_RETURN_IF_ERROR(
          PackInt4(whole, sources[first], static_cast<int64_t>(i - first), parts));
      whole = {};
      first = i;
    }
    whole.channel_order = std::move(stored.channel_order);
    AppendRows(std::move(stored.weight), &whole.weight);
  }
  return PackInt4(whole, sources[first], static_cast<int64_t>(sources.size() - first), parts);
}

absl::StatusOr<StoredInt4> LinearLoader::ReadInt4(const Source& source, int64_t k) {
  const LinearModule& module = *source.module;
  if (source.scheme == nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                            checkpoint_.Get(module.name + ".weight", {module.n, k}));
    StoredInt4 rounded;
    NIBBLE_ASSIGN_OR_RETURN(rounded.weight,
                            QuantizeTensor<Int4Weight>(*tensor, module.n, k, pool_));
    Consumed(static_cast<int64_t>(tensor->bytes.size()));
    return rounded;
  }
  const bool has_qweight =
      source.scheme->layout == WeightLayout::kGptq || source.scheme->layout == WeightLayout::kAwq;
  NIBBLE_ASSIGN_OR_RETURN(
      StoredInt4 stored,
      has_qweight
          ? ReadQweight(checkpoint_, module.name, module.n, k, *source.scheme, pool_)
          : ReadCompressedInt4(checkpoint_, module.name, module.n, k, *source.scheme, pool_));
  Consumed(static_cast<int64_t>(stored.weight.codes.size()));
  if (source.form == WeightForm::kInt4 && source.scheme->activation_bits > 8) {
    ++counts_.meant_for_floats;
  }
  return stored;
}

absl::Status LinearLoader::PackInt4(const StoredInt4& stored, const Source& first,
                                    int64_t num_modules, std::vector<Linear::Part>* parts) {
  const Int4Weight& weight = stored.weight;
  if (first.form == WeightForm::kInt4Floats && stored.channel_order.empty()) {
    auto packed = kernels::PackInt4Float(weight, options_.isa, pool_);
    if (!packed.ok()) return Annotate(packed.status(), first.module->name);
    counts_.int4_floats += num_modules;
    parts->push_back({.weight = *std::move(packed)});
    return absl::OkStatus();
  }
  if (first.form == WeightForm::kInt4Floats) {
    const AlignedBuffer<float> values = Expand(stored, pool_);
    auto packed = kernels::PackDense(values.data(), DType::kF32, weight.n, weight.k, DType::kF32,
                                     options_.isa, pool_);
    if (!packed.ok()) return Annotate(packed.status(), first.module->name);
    counts_.expanded += num_modules;
    parts->push_back({.weight = *std::move(packed)});
    return absl::OkStatus();
  }
  // Folded is the faster form. What keeps the integer form from working too, that form reports.
  auto packed = kernels::PackInt4(weight, ScaleForm::kFolded, options_.isa, pool_);
  if (packed.ok()) {
    counts_.folded += num_modules;
  } else {
    packed = kernels::PackInt4(weight, ScaleForm::kInteger, options_.isa, pool_);
    if (!packed.ok()) return Annotate(packed.status(), first.module->name);
    counts_.integer += num_modules;
  }
  parts->push_back({.weight = *std::move(packed), .channel_order = stored.channel_order});
  return absl::OkStatus();
}

absl::Status LinearLoader::AddInt8(Sources sources, int64_t k, std::vector<Linear::Part>* parts) {
  Int8Weight whole;
  for (const Source& source : sources) {
    NIBBLE_ASSIGN_OR_RETURN(Int8Weight weight, ReadInt8(source, k));
    AppendRows(std::move(weight), &whole);
    ++counts_.int8;
  }
  auto packed = kernels::PackInt8(whole, options_.isa, pool_);
  if (!packed.ok()) return Annotate(packed.status(), sources.front().module->name);
  parts->push_back({.weight = *std::move(packed)});
  return absl::OkStatus();
}

absl::StatusOr<Int8Weight> LinearLoader::ReadInt8(const Source& source, int64_t k) {
  const LinearModule& module = *source.module;
  if (source.scheme != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(
        Int8Weight weight,
        engine::ReadInt8(checkpoint_, {.name = module.name, .n = module.n, .k = k}));
    Consumed(static_cast<int64_t>(weight.codes.size()));
    return weight;
  }
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                          checkpoint_.Get(module.name + ".weight", {module.n, k}));
  NIBBLE_ASSIGN_OR_RETURN(Int8Weight weight,
                          QuantizeTensor<Int8Weight>(*tensor, module.n, k, pool_));
  Consumed(static_cast<int64_t>(tensor->bytes.size()));
  return weight;
}

// Some quantizers write biases of zeros that the model does not have; others than zeros would mean
// that config.json and tensors are of different models.
absl::StatusOr<std::vector<float>> LinearLoader::LoadBias(std::span<const LinearModule> modules) {
  std::vector<float> bias;
  for (const LinearModule& module : modules) {
    const std::string name = module.name + ".bias";
    const TensorView* found = checkpoint_.Find(name);
    if (!module.bias && found == nullptr) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> part, LoadVector(name, module.n));
    if (module.bias) {
      Append(part, &bias);
    } else if (std::any_of(part.begin(), part.end(), [](float value) { return value != 0.0F; })) {
      return InvalidArgument("{}: tensor '{}' is not zero, by config.json {} has no bias",
                             found->file, name, module.name);
    }
  }
  return bias;
}

absl::StatusOr<std::vector<float>> LinearLoader::LoadVector(const std::string& name, int64_t size) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint_.Get(name, {size}));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, TensorToFloats(*tensor, pool_));
  Consumed(static_cast<int64_t>(tensor->bytes.size()));
  return values;
}

void LinearLoader::Consumed(int64_t num_bytes) {
  bytes_done_ = std::min(bytes_done_ + num_bytes, checkpoint_.total_bytes());
  if (options_.progress) options_.progress(bytes_done_, checkpoint_.total_bytes());
}

}  // namespace nibble::engine
