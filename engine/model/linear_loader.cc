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
#include "engine/model/weight_share.h"
#include "kernels/gemm/gemm.h"
#include "kernels/quant/int4_weight.h"
#include "kernels/quant/rtn.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using kernels::Int8Weight;
using kernels::PackedWeight;
using kernels::ScaleForm;

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

// Bytes that a module takes as a whole, near enough to compare a head with the layers.
double ModelBytes(const LinearModule& module, double bytes_per_weight) {
  return static_cast<double>(module.share.n) * static_cast<double>(module.share.k) *
         bytes_per_weight * module.step_share;
}

int64_t StoredBytes(const TensorView& tensor, int64_t num_elements) {
  return num_elements * static_cast<int64_t>(SizeOf(tensor.dtype));
}

// The values as floats in the checkpoint's order of channels: what dequantizing in Python gives.
std::vector<float> Expand(const StoredInt4& stored, ThreadPool* pool) {
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

std::vector<float> Expand(const Int8Weight& weight) {
  std::vector<float> values(static_cast<size_t>(weight.n * weight.k));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] =
        static_cast<float>(weight.codes[i]) * weight.scales[i / static_cast<size_t>(weight.k)];
  }
  return values;
}

}  // namespace

void LinearCounts::Add(const LinearCounts& other) {
  dense += other.dense;
  folded += other.folded;
  integer += other.integer;
  int8 += other.int8;
  int4_floats += other.int4_floats;
  expanded += other.expanded;
  meant_for_floats += other.meant_for_floats;
  model_bytes += other.model_bytes;
}

LinearLoader LinearLoader::Fork(ThreadPool* pool) const {
  LinearLoader fork(checkpoint_, config_, options_, dtype_, total_bytes_, pool);
  fork.is_fork_ = true;
  return fork;
}

void LinearLoader::Join(const LinearLoader& fork) {
  counts_.Add(fork.counts_);
  Consumed(fork.bytes_done_);
}

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

absl::StatusOr<Linear> LinearLoader::Load(const std::vector<LinearModule>& modules) {
  std::vector<Source> sources;
  for (const LinearModule& module : modules) {
    Source source = {.module = &module};
    if (!module.tensor.has_value()) {
      NIBBLE_ASSIGN_OR_RETURN(source.scheme, StoredScheme(module.name));
    }
    NIBBLE_ASSIGN_OR_RETURN(source.form, ChooseForm(module.name, source.scheme));
    sources.push_back(source);
  }
  std::vector<Linear::Part> parts;
  for (size_t begin = 0; begin < sources.size();) {
    size_t end = begin + 1;
    while (end < sources.size() && sources[end].form == sources[begin].form) ++end;
    NIBBLE_RETURN_IF_ERROR(Add(Sources(sources.data() + begin, end - begin), &parts));
    begin = end;
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> bias, LoadBias(modules));
  return Linear(std::move(parts), std::move(bias));
}

absl::StatusOr<Linear> LinearLoader::LoadPlain(const LinearModule& module, WeightForm form) {
  const Source source = {.module = &module, .form = form};
  const LinearCounts counts = counts_;
  std::vector<Linear::Part> parts;
  NIBBLE_RETURN_IF_ERROR(Add({&source, 1}, &parts));
  counts_ = counts;
  return Linear(std::move(parts), {});
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
    return Expand(weight);
  }
  NIBBLE_ASSIGN_OR_RETURN(const StoredInt4 stored, ReadInt4(source));
  return Expand(stored, pool_);
}

absl::StatusOr<Linear> LinearLoader::LoadFloatLayer(const LinearModule& module) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, LoadFloats(module));
  auto packed = kernels::PackDense(values.data(), DType::kF32, module.share.n, module.share.k,
                                   DType::kF32, options_.isa, pool_);
  if (!packed.ok()) return Annotate(packed.status(), module.name);
  counts_.model_bytes += ModelBytes(module, sizeof(float));
  std::vector<Linear::Part> parts;
  parts.push_back({.weight = *std::move(packed)});
  return Linear(std::move(parts), {});
}

absl::StatusOr<const TensorView*> LinearLoader::PlainTensor(const LinearModule& module) const {
  if (module.tensor.has_value()) return &*module.tensor;
  return checkpoint_.Get(module.name + ".weight", {module.share.n, module.share.k});
}

absl::Status LinearLoader::Add(Sources sources, std::vector<Linear::Part>* parts) {
  switch (sources.front().form) {
    case WeightForm::kDense:
      return AddDense(sources, parts);
    case WeightForm::kInt4:
    case WeightForm::kInt4Floats:
      return AddInt4(sources, parts);
    case WeightForm::kInt8:
      return AddInt8(sources, parts);
  }
  return absl::OkStatus();
}

absl::Status LinearLoader::AddDense(Sources sources, std::vector<Linear::Part>* parts) {
  int64_t n = 0;
  for (const Source& source : sources) n += source.module->share.rows.size();
  const int64_t k = sources.front().module->share.columns.size();
  const auto row_bytes = static_cast<size_t>(k) * SizeOf(dtype_);
  AlignedBuffer<uint8_t> rows(static_cast<size_t>(n) * row_bytes);
  uint8_t* next = rows.data();
  for (const Source& source : sources) {
    const MatrixShare& share = source.module->share;
    NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, PlainTensor(*source.module));
    NIBBLE_RETURN_IF_ERROR(ConvertShare(*tensor, share, dtype_, next, pool_));
    next += static_cast<size_t>(share.rows.size()) * row_bytes;
    Consumed(StoredBytes(*tensor, share.num_elements()));
    ++counts_.dense;
    counts_.model_bytes += ModelBytes(*source.module, static_cast<double>(SizeOf(dtype_)));
  }
  auto packed = kernels::PackDense(rows.data(), dtype_, n, k, dtype_, options_.isa, pool_);
  if (!packed.ok()) return Annotate(packed.status(), sources.front().module->name);
  parts->push_back({.weight = *std::move(packed)});
  return absl::OkStatus();
}

absl::Status LinearLoader::AddInt4(Sources sources, std::vector<Linear::Part>* parts) {
  StoredInt4 whole;
  size_t first = 0;  // module of `whole`
  for (size_t i = 0; i < sources.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(StoredInt4 stored, ReadInt4(sources[i]));
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
    counts_.model_bytes += ModelBytes(*sources[i].module, 0.5);
  }
  return PackInt4(whole, sources[first], static_cast<int64_t>(sources.size() - first), parts);
}

template <typename Weight>
absl::StatusOr<Weight> LinearLoader::QuantizeModule(const LinearModule& module) {
  const MatrixShare& share = module.share;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, PlainTensor(module));
  NIBBLE_ASSIGN_OR_RETURN(Weight weight,
                          QuantizeTensor<Weight>(*tensor, share, options_.isa, pool_));
  Consumed(StoredBytes(*tensor, share.rows.size() * share.k));
  return weight;
}

absl::StatusOr<StoredInt4> LinearLoader::ReadInt4(const Source& source) {
  const std::string& name = source.module->name;
  const MatrixShare& share = source.module->share;
  const int64_t group_size =
      source.scheme == nullptr ? kRtnGroupSize : source.scheme->GroupSizeOf(share.k);
  NIBBLE_RETURN_IF_ERROR(CheckOnGroups(config_, options_.place, name, share, group_size));
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
    const std::vector<float> values = Expand(stored, pool_);
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

absl::Status LinearLoader::AddInt8(Sources sources, std::vector<Linear::Part>* parts) {
  Int8Weight whole;
  for (const Source& source : sources) {
    NIBBLE_ASSIGN_OR_RETURN(Int8Weight weight, ReadInt8(source));
    AppendRows(std::move(weight), &whole);
    ++counts_.int8;
    counts_.model_bytes += ModelBytes(*source.module, 1.0);
  }
  auto packed = kernels::PackInt8(whole, options_.isa, pool_);
  if (!packed.ok()) return Annotate(packed.status(), sources.front().module->name);
  parts->push_back({.weight = *std::move(packed)});
  return absl::OkStatus();
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

void LinearLoader::Consumed(int64_t num_bytes) {
  bytes_done_ = std::min(bytes_done_ + num_bytes, total_bytes_);
  if (options_.progress && !is_fork_) options_.progress(bytes_done_, total_bytes_);
}

}  // namespace nibble::engine
