// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/checkpoint_output.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/compressed_tensors.h"
#include "engine/model/safetensors_writer.h"
#include "quantize/block.h"
#include "quantize/block_source.h"
#include "quantize/files.h"

namespace nibble::quantize {
namespace {

using engine::Checkpoint;
using engine::ModelConfig;
using engine::SafetensorsWriter;
using engine::TensorSpec;
using engine::TensorView;

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

// Copies `name` when it is there (following links), synced like everything else of the output.
absl::Status CopyFile(const std::string& from, const std::string& to, std::string_view name) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::exists(fs::path(from) / name, error)) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(fs::path(from) / name));
  return WriteFile(fs::path(to) / name,
                   {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
}

// `ignore` of the quantization_config: Linear modules that stay in 16 bits. One expression for the
// routers of all layers, as other tools write it.
std::vector<std::string> UnquantizedModules(const ModelConfig& config) {
  std::vector<std::string> modules = {"lm_head"};
  for (int64_t i = 0; i < config.num_layers && modules.size() == 1; ++i) {
    const BlockWeights block = EmptyBlock(config, i);
    const std::string layer = fmt::format("model.layers.{}.", i);
    for (const Matrix* matrix : UnroundedMatrices(block)) {
      std::string name = matrix->name.substr(layer.size());
      name.replace(name.rfind('.'), 1, "\\.");
      modules.push_back(fmt::format("re:.*\\.{}$", name));
    }
  }
  return modules;
}

}  // namespace

absl::StatusOr<std::string> QuantizedConfig(const std::string& source, const ModelConfig& config,
                                            const CheckpointOutput& output) {
  const std::string path = source + "/config.json";
  const JsonLimits limits;
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, limits.max_bytes));
  absl::StatusOr<nlohmann::json> json = ParseJson(text, limits);
  if (!json.ok()) return Annotate(json.status(), path);
  (*json)["quantization_config"] =
      engine::QuantizationConfigJson({.weight_bits = WeightBits(output.scheme),
                                      .group_size = output.group_size,
                                      .activation_bits = ActivationBits(output.scheme),
                                      .ignore = UnquantizedModules(config)});
  return json->dump(2) + "\n";
}

absl::StatusOr<int64_t> WriteCheckpoint(const std::string& dir, const Checkpoint& source,
                                        const ModelConfig& config, const WorkFolder& work,
                                        const CheckpointOutput& output,
                                        const std::function<void(int64_t, int64_t)>& progress) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string config_json,
                          QuantizedConfig(source.dir(), config, output));
  std::set<std::string> replaced;
  std::vector<Checkpoint> layers;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    for (std::string& name : TensorNames(source, EmptyBlock(config, i))) {
      replaced.insert(std::move(name));
    }
    NIBBLE_ASSIGN_OR_RETURN(Checkpoint layer, Checkpoint::Open(work.LayerPath(i)));
    layers.push_back(std::move(layer));
  }
  std::vector<const TensorView*> tensors;
  for (const TensorView& tensor : source.tensors()) {
    if (replaced.count(tensor.name) == 0) tensors.push_back(&tensor);
  }
  for (const Checkpoint& layer : layers) {
    for (const TensorView& tensor : layer.tensors()) tensors.push_back(&tensor);
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorView* a, const TensorView* b) { return a->name < b->name; });

  std::vector<TensorSpec> specs;
  int64_t total_bytes = 0;
  for (const TensorView* tensor : tensors) {
    specs.push_back({.name = tensor->name, .dtype = tensor->dtype, .shape = tensor->shape});
    total_bytes += static_cast<int64_t>(tensor->bytes.size());
  }
  NIBBLE_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                          SafetensorsWriter::Create(dir, std::move(specs),
                                                    {.max_shard_bytes = output.max_shard_bytes}));
  int64_t done_bytes = 0;
  for (const TensorView* tensor : tensors) {
    NIBBLE_RETURN_IF_ERROR(writer.Write(tensor->name, tensor->bytes));
    done_bytes += static_cast<int64_t>(tensor->bytes.size());
    if (progress) progress(done_bytes, total_bytes);
  }
  NIBBLE_RETURN_IF_ERROR(writer.Finish());
  NIBBLE_RETURN_IF_ERROR(WriteFile(dir + "/config.json", config_json));
  for (const std::string_view name : kCopiedFiles) {
    NIBBLE_RETURN_IF_ERROR(CopyFile(source.dir(), dir, name));
  }
  return total_bytes;
}

}  // namespace nibble::quantize
