// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/linear_loader.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/aligned_buffer.h"
#include "engine/model/tensor_convert.h"
#include "engine/model/weight_share.h"
#include "kernels/gemm/gemm.h"
#include "kernels/quant/int4_weight.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using kernels::Int8Weight;
using kernels::PackedWeight;
using kernels::ScaleForm;

// Bytes that a module takes as a whole, near enough to compare a head with the layers.
double ModelBytes(const LinearModule& module, double bytes_per_weight) {
  return static_cast<double>(module.share.n) * static_cast<double>(module.share.k) *
         bytes_per_weight * module.step_share;
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
  LinearLoader fork(checkpoint_, config_, options_, packer_, dtype_, total_bytes_, pool);
  fork.is_fork_ = true;
  return fork;
}

void LinearLoader::Join(const LinearLoader& fork) {
  counts_.Add(fork.counts_);
  Consumed(fork.bytes_done_);
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

absl::StatusOr<Linear> LinearLoader::LoadFloatLayer(const LinearModule& module) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, LoadFloats(module));
  auto packed = packer_.PackDense(values.data(), DType::kF32, module.share.n, module.share.k,
                                  DType::kF32, pool_);
  if (!packed.ok()) return Annotate(packed.status(), module.name);
  counts_.model_bytes += ModelBytes(module, sizeof(float));
  std::vector<Linear::Part> parts;
  parts.push_back({.weight = *std::move(packed)});
  return Linear(std::move(parts), {});
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
    Consumed(*tensor, share.num_elements());
    ++counts_.dense;
    counts_.model_bytes += ModelBytes(*source.module, static_cast<double>(SizeOf(dtype_)));
  }
  auto packed = packer_.PackDense(rows.data(), dtype_, n, k, dtype_, pool_);
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

absl::Status LinearLoader::PackInt4(const StoredInt4& stored, const Source& first,
                                    int64_t num_modules, std::vector<Linear::Part>* parts) {
  const Int4Weight& weight = stored.weight;
  if (first.form == WeightForm::kInt4Floats && stored.channel_order.empty()) {
    auto packed = packer_.PackInt4Float(weight, pool_);
    if (!packed.ok()) return Annotate(packed.status(), first.module->name);
    counts_.int4_floats += num_modules;
    parts->push_back({.weight = *std::move(packed)});
    return absl::OkStatus();
  }
  if (first.form == WeightForm::kInt4Floats) {
    const std::vector<float> values = Expand(stored, pool_);
    auto packed =
        packer_.PackDense(values.data(), DType::kF32, weight.n, weight.k, DType::kF32, pool_);
    if (!packed.ok()) return Annotate(packed.status(), first.module->name);
    counts_.expanded += num_modules;
    parts->push_back({.weight = *std::move(packed)});
    return absl::OkStatus();
  }
  // Folded is the faster form. What keeps the integer form from working too, that form reports.
  auto packed = packer_.PackInt4(weight, ScaleForm::kFolded, pool_);
  if (packed.ok()) {
    counts_.folded += num_modules;
  } else {
    packed = packer_.PackInt4(weight, ScaleForm::kInteger, pool_);
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
  auto packed = packer_.PackInt8(whole, pool_);
  if (!packed.ok()) return Annotate(packed.status(), sources.front().module->name);
  parts->push_back({.weight = *std::move(packed)});
  return absl::OkStatus();
}

void LinearLoader::Consumed(int64_t num_bytes) {
  bytes_done_ = std::min(bytes_done_ + num_bytes, total_bytes_);
  if (options_.progress && !is_fork_) options_.progress(bytes_done_, total_bytes_);
}

void LinearLoader::Consumed(const TensorView& tensor, int64_t num_elements) {
  Consumed(num_elements * static_cast<int64_t>(SizeOf(tensor.dtype)));
}

}  // namespace nibble::engine
