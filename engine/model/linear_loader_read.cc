// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How the checkpoint stores a module, and a rank's share of it as codes or floats; what is to be
// quantized is rounded here. linear_loader.cc packs it.

#include <algorithm>
#include <utility>

#include "engine/model/compressed_tensors.h"
#include "engine/model/linear_loader.h"
#include "engine/model/qweight.h"
#include "engine/model/tensor_convert.h"
#include "engine/model/weight_share.h"
#include "kernels/quant/int4_weight.h"
#include "kernels/quant/rtn.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using kernels::Int8Weight;

constexpr int64_t kRtnGroupSize = kernels::RtnOptions().group_size;

absl::StatusOr<Int4Weight> Quantize(const float* rows, int64_t n, int64_t k, Isa isa,
                                    ThreadPool* pool, const Int4Weight*) {
  return kernels::QuantizeRtn(rows, n, k, {.group_size = kRtnGroupSize, .isa = isa}, pool);
}
absl::StatusOr<Int8Weight> Quantize(const float* rows, int64_t n, int64_t k, Isa, ThreadPool* pool,
                                    const Int8Weight*) {
  return kernels::QuantizeInt8(rows, n, k, pool);
}

// Rounds to nearest, a slice of rows at a time: rows do not depend on each other, and a head's
// floats would be twice its tensor. Rows are rounded whole, as scales depend on all of a row, and
// the columns of other ranks dropped: all ranks have the codes that one rank would have.
template <typename Weight>
absl::StatusOr<Weight> QuantizeTensor(const TensorView& tensor, const MatrixShare& share, Isa isa,
                                      ThreadPool* pool) {
  constexpr int64_t kSliceElements = int64_t{1} << 24;  // 64 MiB of floats
  const int64_t k = share.k;
  const int64_t rows_per_slice = std::clamp<int64_t>(kSliceElements / k, 1, share.rows.size());
  std::vector<float> values(static_cast<size_t>(rows_per_slice * k));
  Weight whole;
  for (int64_t row = share.rows.begin; row < share.rows.end; row += rows_per_slice) {
    const int64_t num_rows = std::min(rows_per_slice, share.rows.end - row);
    NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, row * k, num_rows * k, values.data()));
    absl::StatusOr<Weight> slice = Quantize(values.data(), num_rows, k, isa, pool, &whole);
    if (!slice.ok()) {
      return Annotate(slice.status(), fmt::format("{}, rows from {}", tensor.name, row));
    }
    AppendRows(CutColumns(*std::move(slice), share.columns), &whole);
  }
  return whole;
}

std::vector<float> ExpandInt8(const Int8Weight& weight) {
  std::vector<float> values(static_cast<size_t>(weight.n * weight.k));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] =
        static_cast<float>(weight.codes[i]) * weight.scales[i / static_cast<size_t>(weight.k)];
  }
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

absl::StatusOr<const TensorView*> LinearLoader::PlainTensor(const LinearModule& module) const {
  if (module.tensor.has_value()) return &*module.tensor;
  return checkpoint_.Get(module.name + ".weight", {module.share.n, module.share.k});
}

template <typename Weight>
absl::StatusOr<Weight> LinearLoader::QuantizeModule(const LinearModule& module) {
  const MatrixShare& share = module.share;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, PlainTensor(module));
  NIBBLE_ASSIGN_OR_RETURN(Weight weight,
                          QuantizeTensor<Weight>(*tensor, share, options_.isa, pool_));
  Consumed(*tensor, share.rows.size() * share.k);
  return weight;
}

absl::StatusOr<StoredInt4> LinearLoader::ReadInt4(const Source& source) {
  const std::string& name = source.module->name;
  const MatrixShare& share = source.module->share;
  const int64_t group_size =
      source.scheme == nullptr ? kRtnGroupSize : source.scheme->GroupSizeOf(share.k);
  const int64_t num_slots =
      options_.expert_layout == nullptr ? 0 : options_.expert_layout->num_slots;
  NIBBLE_RETURN_IF_ERROR(
      CheckOnGroups(config_, options_.place, name, share, group_size, num_slots));
  if (source.scheme == nullptr) {
    StoredInt4 rounded;
    NIBBLE_ASSIGN_OR_RETURN(rounded.weight, QuantizeModule<Int4Weight>(*source.module));
    return rounded;
  }
  const bool has_qweight =
      source.scheme->layout == WeightLayout::kGptq || source.scheme->layout == WeightLayout::kAwq;
  NIBBLE_ASSIGN_OR_RETURN(
      StoredInt4 stored, has_qweight
                             ? ReadQweight(checkpoint_, name, share, *source.scheme, pool_)
                             : ReadCompressedInt4(checkpoint_, name, share, *source.scheme, pool_));
  Consumed(static_cast<int64_t>(stored.weight.codes.size()));
  if (source.form == WeightForm::kInt4 && source.scheme->activation_bits > 8) {
    ++counts_.meant_for_floats;
  }
  return stored;
}

absl::StatusOr<Int8Weight> LinearLoader::ReadInt8(const Source& source) {
  if (source.scheme == nullptr) return QuantizeModule<Int8Weight>(*source.module);
  NIBBLE_ASSIGN_OR_RETURN(Int8Weight weight,
                          engine::ReadInt8(checkpoint_, source.module->name, source.module->share));
  Consumed(static_cast<int64_t>(weight.codes.size()));
  return weight;
}

// Some quantizers write biases of zeros that the model does not have; others than zeros would mean
// that config.json and tensors are of different models. Where every rank has some of the input
// channels, the sum over the ranks gets the bias from the first.
absl::StatusOr<std::vector<float>> LinearLoader::LoadBias(std::span<const LinearModule> modules) {
  std::vector<float> bias;
  for (const LinearModule& module : modules) {
    if (module.share.columns.begin > 0) continue;
    const std::string name = module.name + ".bias";
    const TensorView* found = checkpoint_.Find(name);
    if (!module.bias && found == nullptr) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> whole, LoadVector(name, module.share.n));
    if (module.bias) {
      const Range& rows = module.share.rows;
      bias.insert(bias.end(), whole.begin() + rows.begin, whole.begin() + rows.end);
    } else if (std::any_of(whole.begin(), whole.end(), [](float value) { return value != 0.0F; })) {
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

absl::StatusOr<std::vector<float>> LinearLoader::LoadFloats(const LinearModule& module) {
  NIBBLE_ASSIGN_OR_RETURN(const WeightScheme* scheme, StoredScheme(module.name));
  const TensorView* plain = checkpoint_.Find(module.name + ".weight");
  if (plain != nullptr && plain->dtype != DType::kI8) scheme = nullptr;
  NIBBLE_RETURN_IF_ERROR(LoadBias({&module, 1}).status());
  if (scheme == nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(plain, PlainTensor(module));
    Consumed(static_cast<int64_t>(plain->bytes.size()));
    return TensorToFloats(*plain, pool_);
  }
  const Source source = {.module = &module, .scheme = scheme, .form = WeightForm::kInt4Floats};
  if (scheme->weight_bits == 8) {
    NIBBLE_ASSIGN_OR_RETURN(const Int8Weight weight, ReadInt8(source));
    return ExpandInt8(weight);
  }
  NIBBLE_ASSIGN_OR_RETURN(const StoredInt4 stored, ReadInt4(source));
  return Expand(stored, pool_);
}

// The values as floats in the checkpoint's order of channels: what dequantizing in Python gives.
std::vector<float> LinearLoader::Expand(const StoredInt4& stored, ThreadPool* pool) {
  const Int4Weight& weight = stored.weight;
  std::vector<float> values(static_cast<size_t>(weight.n * weight.k));
  pool->ParallelFor(weight.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < weight.k; ++column) {
        const int64_t channel = stored.channel_order.empty()
                                    ? column
                                    : stored.channel_order[static_cast<size_t>(column)];
        values[static_cast<size_t>(row * weight.k + channel)] = weight.Dequantize(row, column);
      }
    }
  });
  return values;
}

}  // namespace nibble::engine
