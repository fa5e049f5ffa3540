// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/quantize.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <utility>

#include "nlohmann/json.hpp"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/compressed_tensors.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_writer.h"
#include "kernels/quant/rtn.h"
#include "quantize/output_folder.h"

namespace nibble::quantize {
namespace {

using engine::Checkpoint;
using engine::ModelConfig;
using engine::PackedModule;
using engine::SafetensorsWriter;
using engine::TensorSpec;
using engine::TensorView;
using kernels::Int4Weight;

// Floats of a tensor held at a time (64 MiB); rows are quantized independently of each other.
constexpr int64_t kSliceElements = int64_t{1} << 24;
constexpr int64_t kMaxGroupSize = 1 << 16;

constexpr std::string_view kWeight = ".weight";

// What a model directory holds besides tensors and config.json. Folders of published models also
// carry their licence, which must travel with the weights.
constexpr std::string_view kCopiedFiles[] = {"added_tokens.json",
                                             "chat_template.jinja",
                                             "chat_template.json",
                                             "generation_config.json",
                                             "merges.txt",
                                             "special_tokens_map.json",
                                             "tokenizer.json",
                                             "tokenizer.model",
                                             "tokenizer_config.json",
                                             "vocab.json",
                                             "LICENSE",
                                             "LICENSE.md",
                                             "LICENSE.txt",
                                             "NOTICE",
                                             "NOTICE.txt"};

struct Linear {
  std::string name;  // without ".weight"
  int64_t layer_idx = 0;
  int64_t n = 0;
  int64_t k = 0;
};

// The linear layers of the decoder, by the name of their weight.
using LinearMap = std::map<std::string, Linear, std::less<>>;

LinearMap DecoderLinears(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  const int64_t ffn = config.intermediate_size;
  struct Shape {
    std::string_view name;
    int64_t n;
    int64_t k;
  };
  const Shape shapes[] = {{"self_attn.q_proj", q, hidden},  {"self_attn.k_proj", kv, hidden},
                          {"self_attn.v_proj", kv, hidden}, {"self_attn.o_proj", hidden, q},
                          {"mlp.gate_proj", ffn, hidden},   {"mlp.up_proj", ffn, hidden},
                          {"mlp.down_proj", hidden, ffn}};
  LinearMap linears;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Shape& shape : shapes) {
      const std::string name = fmt::format("model.layers.{}.{}", layer, shape.name);
      linears[fmt::format("{}{}", name, kWeight)] = {
          .name = name, .layer_idx = layer, .n = shape.n, .k = shape.k};
    }
  }
  return linears;
}

absl::Status CheckGroupSize(int64_t group_size) {
  if (group_size < 8 || group_size > kMaxGroupSize || group_size % 8 != 0) {
    return InvalidArgument("group size is {}, must be a multiple of 8 in 8..{}", group_size,
                           kMaxGroupSize);
  }
  return absl::OkStatus();
}

// Everything that can be wrong with the source is found here, before anything is written.
absl::Status CheckLinears(const Checkpoint& checkpoint, const LinearMap& linears,
                          int64_t group_size) {
  for (const auto& [tensor_name, linear] : linears) {
    if (engine::IsPackedInt4(checkpoint, linear.name)) {
      return InvalidArgument(
          "{}: module '{}' is quantized already; start from the full-precision "
          "model",
          checkpoint.dir(), linear.name);
    }
    NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor,
                            checkpoint.Get(tensor_name, {linear.n, linear.k}));
    NIBBLE_RETURN_IF_ERROR(ReadFloats(*tensor, 0, 0, nullptr));  // its type
    if (linear.k % group_size != 0) {
      return InvalidArgument(
          "{}: tensor '{}' has {} input channels, not a multiple of the group size {}",
          tensor->file, tensor->name, linear.k, group_size);
    }
  }
  return absl::OkStatus();
}

// Squared error and squared norm of one or more modules.
struct Error {
  double error = 0.0;
  double norm = 0.0;
  int64_t num_weights = 0;
  int64_t bits = 0;  // as stored

  void Add(const Error& other) {
    error += other.error;
    norm += other.norm;
    num_weights += other.num_weights;
    bits += other.bits;
  }
  double relative() const { return norm > 0.0 ? std::sqrt(error / norm) : 0.0; }
  double bits_per_weight() const {
    return num_weights > 0 ? static_cast<double>(bits) / static_cast<double>(num_weights) : 0.0;
  }
};

// Of a slice whose group size divides k. Rows are summed in order, whatever thread did them.
Error MeasureError(const float* weights, const Int4Weight& quantized, ThreadPool* pool) {
  std::vector<std::pair<double, double>> rows(static_cast<size_t>(quantized.n));
  const int64_t num_groups = quantized.num_groups();
  pool->ParallelFor(quantized.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double error = 0.0;
      double norm = 0.0;
      // By group: Dequantize would divide by the group size for every weight.
      for (int64_t group = 0; group < num_groups; ++group) {
        const float scale = quantized.scales[static_cast<size_t>(row * num_groups + group)];
        const int64_t first = group * quantized.group_size;
        for (int64_t column = first; column < first + quantized.group_size; ++column) {
          const double weight = weights[row * quantized.k + column];
          const double difference =
              weight - scale * static_cast<float>(quantized.Code(row, column) - 8);
          error += difference * difference;
          norm += weight * weight;
        }
      }
      rows[static_cast<size_t>(row)] = {error, norm};
    }
  });
  Error total;
  for (const auto& [error, norm] : rows) {
    total.error += error;
    total.norm += norm;
  }
  total.num_weights = quantized.n * quantized.k;
  total.bits = static_cast<int64_t>(quantized.codes.size() * 8 + quantized.scales.size() * 32);
  return total;
}

absl::StatusOr<Int4Weight> QuantizeSlice(const float* weights, int64_t n, int64_t k,
                                         const QuantizeOptions& options, ThreadPool* pool) {
  switch (options.method) {
    case Method::kRtn:
      return kernels::QuantizeRtn(weights, n, k,
                                  {.group_size = options.group_size, .folded_scales = true}, pool);
  }
  return Internal("unknown method {}", static_cast<int>(options.method));
}

// Quantizes `tensor` slice by slice.
absl::StatusOr<Int4Weight> QuantizeLinear(const TensorView& tensor, const Linear& linear,
                                          const QuantizeOptions& options, ThreadPool* pool,
                                          Error* error) {
  Int4Weight whole = {.n = linear.n, .k = linear.k, .group_size = options.group_size};
  const int64_t rows_per_slice = std::clamp<int64_t>(kSliceElements / linear.k, 1, linear.n);
  std::vector<float> weights(static_cast<size_t>(rows_per_slice * linear.k));
  for (int64_t row = 0; row < linear.n; row += rows_per_slice) {
    const int64_t num_rows = std::min(rows_per_slice, linear.n - row);
    NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, row * linear.k, num_rows * linear.k, weights.data()));
    absl::StatusOr<Int4Weight> slice =
        QuantizeSlice(weights.data(), num_rows, linear.k, options, pool);
    if (!slice.ok()) {
      return Annotate(slice.status(),
                      fmt::format("{}: tensor '{}', rows from {}", tensor.file, tensor.name, row));
    }
    error->Add(MeasureError(weights.data(), *slice, pool));
    whole.codes.insert(whole.codes.end(), slice->codes.begin(), slice->codes.end());
    whole.scales.insert(whole.scales.end(), slice->scales.begin(), slice->scales.end());
  }
  return whole;
}

// config.json of the source with a quantization_config.
absl::StatusOr<std::string> QuantizedConfig(const std::string& source,
                                            const QuantizeOptions& options) {
  const std::string path = source + "/config.json";
  const JsonLimits limits;
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, limits.max_bytes));
  absl::StatusOr<nlohmann::json> json = ParseJson(text, limits);
  if (!json.ok()) return Annotate(json.status(), path);
  (*json)["quantization_config"] =
      engine::QuantizationConfigJson({.group_size = options.group_size,
                                      .activation_bits = options.scheme == Scheme::kW4A8 ? 8 : 16,
                                      .ignore = {"lm_head"}});
  return json->dump(2) + "\n";
}

absl::Status CheckFolders(const std::string& source, const std::string& output) {
  namespace fs = std::filesystem;
  if (output.empty()) return InvalidArgument("the output folder's name is empty");
  std::error_code error;
  const std::string from = fs::weakly_canonical(source, error).string() + "/";
  const std::string to = fs::weakly_canonical(output, error).string() + "/";
  if (from.starts_with(to)) {
    return InvalidArgument("{}: writing here would replace the source {}", output, source);
  }
  return absl::OkStatus();
}

// One run: the source, what is being written, and the sums so far.
class Run {
 public:
  Run(const Checkpoint& checkpoint, const LinearMap& linears, const QuantizeOptions& options,
      ThreadPool* pool)
      : checkpoint_(checkpoint), linears_(linears), options_(options), pool_(pool) {}

  std::vector<TensorSpec> OutputSpecs() const {
    std::vector<TensorSpec> specs;
    for (const TensorView& tensor : checkpoint_.tensors()) {
      const auto linear = linears_.find(tensor.name);
      if (linear == linears_.end()) {
        specs.push_back({.name = tensor.name, .dtype = tensor.dtype, .shape = tensor.shape});
        continue;
      }
      for (TensorSpec& spec : PackedInt4Specs(Packed(linear->second))) {
        specs.push_back(std::move(spec));
      }
    }
    return specs;
  }

  absl::Status WriteTensors(SafetensorsWriter* writer, const ProgressCallback& progress) {
    QuantizeProgress state = {.total_bytes = checkpoint_.total_bytes()};
    for (const TensorView& tensor : checkpoint_.tensors()) {
      state.tensor = tensor.name;
      if (progress) progress(state);
      const auto linear = linears_.find(tensor.name);
      if (linear == linears_.end()) {
        NIBBLE_RETURN_IF_ERROR(writer->Write(tensor.name, tensor.bytes));
        report_.output_bytes += static_cast<int64_t>(tensor.bytes.size());
      } else {
        NIBBLE_RETURN_IF_ERROR(WriteLinear(tensor, linear->second, writer));
      }
      state.done_bytes += static_cast<int64_t>(tensor.bytes.size());
    }
    state.tensor = {};
    if (progress) progress(state);
    return absl::OkStatus();
  }

  QuantizeReport Report() {
    Error total;
    for (const auto& [layer_idx, error] : layer_errors_) {
      LayerReport& layer = layers_[layer_idx];
      layer.layer_idx = layer_idx;
      layer.relative_error = error.relative();
      layer.bits_per_weight = error.bits_per_weight();
      report_.layers.push_back(std::move(layer));
      total.Add(error);
    }
    report_.relative_error = total.relative();
    report_.bits_per_weight = total.bits_per_weight();
    report_.source_bytes = checkpoint_.total_bytes();
    return std::move(report_);
  }

 private:
  PackedModule Packed(const Linear& linear) const {
    return {.name = linear.name, .n = linear.n, .k = linear.k, .group_size = options_.group_size};
  }

  absl::Status WriteLinear(const TensorView& tensor, const Linear& linear,
                           SafetensorsWriter* writer) {
    Error error;
    NIBBLE_ASSIGN_OR_RETURN(const Int4Weight weight,
                            QuantizeLinear(tensor, linear, options_, pool_, &error));
    NIBBLE_RETURN_IF_ERROR(WritePackedInt4(linear.name, weight, writer));
    report_.output_bytes += error.bits / 8 + static_cast<int64_t>(2 * sizeof(int64_t));
    layer_errors_[linear.layer_idx].Add(error);
    layers_[linear.layer_idx].modules.push_back({.name = linear.name,
                                                 .n = linear.n,
                                                 .k = linear.k,
                                                 .relative_error = error.relative(),
                                                 .bits_per_weight = error.bits_per_weight()});
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const LinearMap& linears_;
  const QuantizeOptions& options_;
  ThreadPool* pool_;
  QuantizeReport report_;
  std::map<int64_t, Error> layer_errors_;
  std::map<int64_t, LayerReport> layers_;
};

}  // namespace

absl::StatusOr<Scheme> ParseScheme(std::string_view name) {
  if (name == "w4a8") return Scheme::kW4A8;
  return Unimplemented("scheme '{}' is not supported (supported: w4a8)", name);
}

absl::StatusOr<Method> ParseMethod(std::string_view name) {
  if (name == "rtn") return Method::kRtn;
  return Unimplemented("method '{}' is not supported (supported: rtn)", name);
}

absl::StatusOr<QuantizeReport> QuantizeCheckpoint(const std::string& source,
                                                  const std::string& output,
                                                  const QuantizeOptions& options, ThreadPool* pool,
                                                  const ProgressCallback& progress) {
  NIBBLE_RETURN_IF_ERROR(CheckGroupSize(options.group_size));
  NIBBLE_ASSIGN_OR_RETURN(const ModelConfig config, engine::LoadModelConfig(source));
  if (config.quantization) {
    return InvalidArgument(
        "{}: quantized already (quantization_config in config.json); start from the full-precision "
        "model",
        source);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(source));
  const LinearMap linears = DecoderLinears(config);
  NIBBLE_RETURN_IF_ERROR(CheckLinears(checkpoint, linears, options.group_size));
  NIBBLE_RETURN_IF_ERROR(CheckFolders(source, output));
  NIBBLE_ASSIGN_OR_RETURN(const std::string config_json, QuantizedConfig(source, options));

  NIBBLE_ASSIGN_OR_RETURN(OutputFolder folder, OutputFolder::Create(output, options.overwrite));
  Run run(checkpoint, linears, options, pool);
  NIBBLE_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                          SafetensorsWriter::Create(folder.path(), run.OutputSpecs(),
                                                    {.max_shard_bytes = options.max_shard_bytes}));
  NIBBLE_RETURN_IF_ERROR(run.WriteTensors(&writer, progress));
  NIBBLE_RETURN_IF_ERROR(writer.Finish());
  NIBBLE_RETURN_IF_ERROR(folder.WriteFile("config.json", config_json));
  for (const std::string_view name : kCopiedFiles) {
    NIBBLE_RETURN_IF_ERROR(folder.CopyFile(source, name));
  }
  NIBBLE_RETURN_IF_ERROR(folder.Commit());
  return run.Report();
}

}  // namespace nibble::quantize
