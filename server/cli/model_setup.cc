// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/model_setup.h"

#include <cmath>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "fmt/ranges.h"

#include "base/clock.h"
#include "base/cpu_list.h"
#include "base/log.h"
#include "engine/model/memory.h"
#include "server/cli/cuda_engine.h"
#include "server/cli/progress.h"
#include "server/cli/start_error.h"

namespace nibble::cli {
namespace {

std::optional<DType> ParseDType(const std::string& name) {
  if (name == "float32") return DType::kF32;
  if (name == "bfloat16") return DType::kBf16;
  if (name == "float16") return DType::kF16;
  if (name == "int8") return DType::kI8;  // of the KV cache only
  return std::nullopt;  // "auto": the checkpoint's; server::ModelOptions::Validate lets nothing
                        // else through
}

engine::Quantization ParseQuantization(const std::string& name) {
  if (name == "w4a8") return engine::Quantization::kW4A8;
  if (name == "w4a16") return engine::Quantization::kW4A16;
  if (name == "w8a8") return engine::Quantization::kW8A8;
  return engine::Quantization::kNone;
}

engine::HeadQuantization ParseHeadQuantization(const std::string& name) {
  if (name == "none") return engine::HeadQuantization::kNone;
  if (name == "int8") return engine::HeadQuantization::kInt8;
  if (name == "int4") return engine::HeadQuantization::kInt4;
  return engine::HeadQuantization::kAuto;
}

// CPUs or CUDA, and why.
absl::Status ChooseKind(const server::ModelOptions& options, int num_ranks, DeviceChoice* choice) {
  choice->device = "cpu";
  choice->reason = "--device cpu";
  if (options.device == "cpu") return absl::OkStatus();
  if (!HasCudaEngine()) {
    choice->reason = "this build has no CUDA engine";
    if (options.device == "auto") return absl::OkStatus();
    return InvalidArgument(
        "--device cuda: this build has no CUDA engine; build the preset `cuda` (NIBBLE_CUDA=ON), "
        "or "
        "use --device cpu");
  }
  const engine::CudaDevices devices = CudaDevices();
  choice->num_devices = static_cast<int>(devices.usable.size());
  if (choice->num_devices >= num_ranks) {
    const std::string lacks = WhatCudaLacks(options);
    if (options.device == "auto" && !lacks.empty()) {
      choice->reason = lacks;
      return absl::OkStatus();
    }
    choice->device = "cuda";
    choice->reason = options.device == "cuda" ? "--device cuda" : "a device is usable";
    return absl::OkStatus();
  }
  choice->reason = devices.usable.empty()
                       ? devices.why_none
                       : fmt::format("{} for {} ranks of this host",
                                     Counted(choice->num_devices, "CUDA device"), num_ranks);
  if (options.device == "auto") return absl::OkStatus();
  return InvalidArgument("--device cuda: {}; use --device cpu{}", choice->reason,
                         devices.usable.empty() ? "" : ", or fewer ranks");
}

std::string Scaled(double value, const char* const (&units)[5]) {
  int unit = 0;
  while (value >= 1000.0 && unit < 4) {
    value /= 1000.0;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, unit == 0 ? 0 : value < 10 ? 2 : 1, units[unit]);
}

}  // namespace

std::string WhatCudaLacks(const server::ModelOptions& options) {
  if (options.quantization == "w4a16") return "--quantization w4a16 is for CPUs alone";
  if (options.dtype == "float16") return "--dtype float16 is for CPUs alone";
  if (options.kv_cache_dtype == "float16") return "--kv-cache-dtype float16 is for CPUs alone";
  return "";
}

absl::StatusOr<DeviceChoice> ChooseDevice(const server::ModelOptions& options, int num_ranks) {
  DeviceChoice choice;
  NIBBLE_RETURN_IF_ERROR(ChooseKind(options, num_ranks, &choice));
  const std::vector<std::string> of_cuda = options.DeviceOptions();
  if (!choice.is_cuda() && !of_cuda.empty()) {
    log::Info("{}: without effect on the CPU ({})", fmt::join(of_cuda, ", "), choice.reason);
  }
  NIBBLE_ASSIGN_OR_RETURN(choice.isa, ChooseIsa());
  choice.threads = options.threads > 0 ? options.threads : ThreadPool::HostThreads();
  if (options.cpu_binding == "auto") {
    choice.cpus = ThreadPool::CpusToBind(choice.threads);
  } else if (options.cpu_binding != "none") {
    NIBBLE_ASSIGN_OR_RETURN(choice.cpus, ParseCpuList(options.cpu_binding));
    choice.threads = static_cast<int>(choice.cpus.size());
  }
  return choice;
}

absl::StatusOr<std::shared_ptr<const engine::ModelDevice>> OpenDevice(
    const server::ModelOptions& options, const DeviceChoice& choice, int index) {
  if (!choice.is_cuda()) return nullptr;
  engine::CudaOptions cuda{.index = index,
                           .memory_utilization = options.gpu_memory_utilization,
                           .enforce_eager = options.enforce_eager,
                           .use_cublaslt = !options.batch_invariant};
  if (options.attention_backend == "nibble" || options.batch_invariant) {
    cuda.attention = engine::CudaAttention::kNibble;
  }
  if (options.attention_backend == "flashinfer") {
    cuda.attention = engine::CudaAttention::kFlashInfer;
  }
  return OpenCuda(cuda);
}

absl::Status CheckModelDirectory(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return NotFound(
        "{}: no such directory; MODEL is a folder with config.json, *.safetensors and a tokenizer",
        path);
  }
  if (!std::filesystem::is_directory(path, error)) {
    return InvalidArgument(
        "{}: not a directory; MODEL is a folder with config.json, *.safetensors and a tokenizer",
        path);
  }
  return absl::OkStatus();
}

absl::Status CheckTokenizer(const std::string& path, const engine::Tokenizer& tokenizer,
                            const engine::ModelConfig& model) {
  if (tokenizer.vocab_size() <= model.vocab_size) return absl::OkStatus();
  return InvalidArgument("{}: the tokenizer has {} ids, the model's vocabulary {}", path,
                         tokenizer.vocab_size(), model.vocab_size);
}

engine::LoadOptions ToLoadOptions(const server::ModelOptions& options, Isa isa) {
  engine::LoadOptions load;
  load.dtype = ParseDType(options.dtype);
  load.kv_cache_dtype = ParseDType(options.kv_cache_dtype);
  load.quantization = ParseQuantization(options.quantization);
  load.head_quantization = ParseHeadQuantization(options.head_quantization);
  load.isa = isa;
  return load;
}

absl::StatusOr<LoadedModel> LoadModel(const server::ModelOptions& options,
                                      const std::function<void(int64_t, int64_t)>& on_progress) {
  NIBBLE_RETURN_IF_ERROR(CheckModelDirectory(options.model));
  LoadedModel loaded;
  NIBBLE_ASSIGN_OR_RETURN(loaded.device, ChooseDevice(options));
  engine::LoadOptions load = ToLoadOptions(options, loaded.device.isa);
  if (!loaded.device.is_cuda()) {  // a device looks for itself
    NIBBLE_ASSIGN_OR_RETURN(const engine::ModelConfig model,
                            engine::LoadModelConfig(options.model));
    NIBBLE_RETURN_IF_ERROR(CheckWeightsFit(model, {load}, engine::AvailableMemoryBytes()));
  }
  const int64_t start_ns = Clock::Monotonic().NowNs();
  NIBBLE_ASSIGN_OR_RETURN(loaded.tokenizer, engine::Tokenizer::Load(options.model));
  loaded.pool = std::make_unique<ThreadPool>(loaded.device.threads, loaded.device.cpus);
  Progress progress("loading weights", "MB", {.divisor = 1'000'000});
  NIBBLE_ASSIGN_OR_RETURN(load.device, OpenDevice(options, loaded.device, 0));
  load.progress = [&](int64_t done, int64_t total) {
    progress.Update(done, total);
    if (on_progress) on_progress(done, total);
  };
  NIBBLE_ASSIGN_OR_RETURN(loaded.model,
                          engine::Model::Load(options.model, load, loaded.pool.get()));
  for (const std::string& warning : loaded.model->warnings()) log::Warning("{}", warning);
  NIBBLE_RETURN_IF_ERROR(CheckTokenizer(options.model, *loaded.tokenizer, loaded.model->config()));
  loaded.load_seconds = static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
  return loaded;
}

std::string ModelNameFromPath(const std::string& path) {
  std::error_code error;
  std::filesystem::path directory = std::filesystem::weakly_canonical(path, error);
  if (error) directory = std::filesystem::path(path).lexically_normal();
  if (!directory.has_filename()) directory = directory.parent_path();  // "models/stories/"
  const std::string name = directory.filename().string();
  return name.empty() ? "model" : name;
}

std::string DumpJson(const nlohmann::ordered_json& json) {
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string Counted(int64_t count, const char* thing) {
  return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

std::string HumanCount(int64_t count) {
  return Scaled(static_cast<double>(count), {"", "K", "M", "B", "T"});
}

std::string HumanBytes(int64_t bytes) {
  return Scaled(static_cast<double>(bytes), {"B", "KB", "MB", "GB", "TB"});
}

}  // namespace nibble::cli
