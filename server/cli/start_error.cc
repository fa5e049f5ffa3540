// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/start_error.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "fmt/ranges.h"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/weight_loader.h"
#include "server/cli/model_setup.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxIndexBytes = size_t{64} << 20;

bool Has(const std::filesystem::path& file) {
  std::error_code error;
  return std::filesystem::is_regular_file(file, error) &&
         std::filesystem::file_size(file, error) > 0 && !error;
}

// Files that the index names and that are not there. An index that cannot be read is for its reader
// to refuse.
std::vector<std::string> MissingShards(const std::filesystem::path& dir) {
  const auto text = ReadFile((dir / "model.safetensors.index.json").string(), kMaxIndexBytes);
  if (!text.ok()) return {};
  const auto index = ParseJson(*text);
  if (!index.ok() || !index->is_object() || !index->contains("weight_map")) return {};
  const auto& map = (*index)["weight_map"];
  if (!map.is_object()) return {};
  std::set<std::string> names;
  for (const auto& [tensor, file] : map.items()) {
    if (file.is_string()) names.insert(file.get<std::string>());
  }
  std::vector<std::string> missing;
  for (const std::string& name : names) {
    // A path that leads elsewhere is refused by the reader, and is not looked for.
    if (name.find('/') == std::string::npos && !Has(dir / name)) missing.push_back(name);
  }
  return missing;
}

int64_t WeightBytes(const engine::ModelConfig& model,
                    const std::vector<engine::LoadOptions>& ranks) {
  int64_t bytes = 0;
  for (const engine::LoadOptions& rank : ranks) bytes += engine::LeastWeightBytes(model, rank);
  return bytes;
}

bool Is(const absl::Status& cause, int error) {
  return std::string_view(cause.message().data(), cause.message().size())
             .find(std::generic_category().message(error)) != std::string_view::npos;
}

}  // namespace

absl::Status StartError::ToStatus(absl::StatusCode code) const {
  std::string text = what;
  if (!needed.empty()) text += "\n  needed: " + needed;
  if (!there_is.empty()) text += "\n  there is: " + there_is;
  for (const std::string& remedy : remedies) text += "\n  try: " + remedy;
  return {code, text};
}

double EnoughUtilization(double present, int64_t missing_bytes, int64_t total_bytes) {
  if (total_bytes <= 0 || missing_bytes <= 0) return 0.0;
  const double exact =
      present + static_cast<double>(missing_bytes) / static_cast<double>(total_bytes);
  const double enough = std::ceil(exact * 100.0 - 1e-9) / 100.0;
  return enough <= server::kMaxGpuMemoryUtilization ? enough : 0.0;
}

absl::Status CannotListen(std::string_view option, const std::string& host, int port,
                          const absl::Status& cause) {
  StartError error{.what = fmt::format("{} {} cannot be opened", option, port),
                   .needed = fmt::format("{} port {}", host, port),
                   .there_is = std::string(cause.message())};
  if (Is(cause, EACCES)) {
    error.remedies = {fmt::format("{} 1024 or above, which needs no rights", option)};
  } else if (Is(cause, EADDRNOTAVAIL)) {
    error.remedies = {"--host with an address of this machine, or 0.0.0.0 for all of them"};
  } else {
    error.remedies = {
        fmt::format("{} with another number, or 0 for any free one", option),
        fmt::format("ending what listens there: ss -ltnp 'sport = :{}' names it", port)};
  }
  return error.ToStatus(cause.code());
}

absl::Status CheckModelFiles(const std::string& dir) {
  NIBBLE_RETURN_IF_ERROR(CheckModelDirectory(dir));
  const std::filesystem::path path(dir);
  std::vector<std::string> missing;
  if (!Has(path / "config.json")) missing.push_back("config.json");
  if (Has(path / "model.safetensors.index.json")) {
    std::vector<std::string> shards = MissingShards(path);
    constexpr size_t kShown = 3;
    const size_t num_shards = shards.size();
    if (num_shards > kShown) {
      shards.resize(kShown);
      shards.push_back(fmt::format("{} more files of weights", num_shards - kShown));
    }
    missing.insert(missing.end(), shards.begin(), shards.end());
  } else if (!std::filesystem::exists(path / "model.safetensors")) {
    missing.push_back("model.safetensors (or model.safetensors.index.json and its files)");
  }
  if (!Has(path / "tokenizer.json") && !Has(path / "tokenizer.model")) {
    missing.push_back("tokenizer.json (or tokenizer.model)");
  }
  if (missing.empty()) return absl::OkStatus();
  return StartError{
      .what = fmt::format("{}: the model directory is incomplete", dir),
      .needed = "config.json, *.safetensors and a tokenizer, as a Hugging Face checkpoint has them",
      .there_is = fmt::format("no {}", fmt::join(missing, ", no ")),
      .remedies = {"copying the missing files, or downloading the model again"}}
      .ToStatus(absl::StatusCode::kNotFound);
}

absl::Status CheckWeightsFit(const engine::ModelConfig& model,
                             const std::vector<engine::LoadOptions>& ranks,
                             int64_t available_bytes) {
  const int64_t bytes = WeightBytes(model, ranks);
  if (bytes <= available_bytes) return absl::OkStatus();
  StartError error{
      .what = "the model's weights do not fit into memory",
      .needed = fmt::format(
          "{} at least{}", HumanBytes(bytes),
          ranks.size() == 1 ? "" : fmt::format(", for the {} ranks of this host", ranks.size())),
      .there_is = fmt::format("{} available", HumanBytes(available_bytes))};
  // What is quantized already stays as it is.
  const bool can_quantize = !model.quantization.has_value() && !ranks.empty() &&
                            ranks.front().quantization != engine::Quantization::kW4A8;
  if (can_quantize) {
    std::vector<engine::LoadOptions> smaller = ranks;
    for (const auto& [quantization, name] : {std::pair(engine::Quantization::kW8A8, "w8a8"),
                                             std::pair(engine::Quantization::kW4A8, "w4a8")}) {
      for (engine::LoadOptions& rank : smaller) rank.quantization = quantization;
      const int64_t less = WeightBytes(model, smaller);
      if (less < bytes && less <= available_bytes) {
        error.remedies.push_back(
            fmt::format("--quantization {}, which needs {}", name, HumanBytes(less)));
      }
    }
  }
  error.remedies.push_back(
      fmt::format("a machine, or a memory limit of the container, with {} more",
                  HumanBytes(bytes - available_bytes)));
  error.remedies.push_back("more hosts that share the layers: --nnodes, --pipeline-parallel-size");
  return error.ToStatus(absl::StatusCode::kResourceExhausted);
}

}  // namespace nibble::cli
