// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From command-line options to a loaded model: device, instruction set, weights with progress.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "nlohmann/json.hpp"

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/model.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/config.h"

namespace nibble::cli {

// What computes, and why that was chosen.
struct DeviceChoice {
  Isa isa = Isa::kRef;
  int threads = 1;
  std::vector<int> cpus;  // one for each thread, or empty: the system chooses
  std::string device;     // "cpu", "cuda"
  std::string reason;     // "no CUDA engine in this build", "--device cpu"
  int num_devices = 0;    // that CUDA can use here

  bool is_cuda() const { return device == "cuda"; }
};

// For `num_ranks` ranks on this host, each on a device of its own. INVALID_ARGUMENT for --device
// cuda in a build without CUDA, without a device or with fewer than ranks, and for a FORCE_ISA
// above the host. `auto` then takes the CPUs, and where options name what CUDA lacks.
absl::StatusOr<DeviceChoice> ChooseDevice(const server::ModelOptions& options, int num_ranks = 1);

// Of these options what the CUDA engine does not have, for people; empty: nothing.
std::string WhatCudaLacks(const server::ModelOptions& options);

// NOT_FOUND or INVALID_ARGUMENT unless `path` is a directory, saying what it should be.
absl::Status CheckModelDirectory(const std::string& path);
// INVALID_ARGUMENT for a tokenizer with ids that the model has no logits for.
absl::Status CheckTokenizer(const std::string& path, const engine::Tokenizer& tokenizer,
                            const engine::ModelConfig& model);
// REQUIRES options that Validate accepts.
engine::LoadOptions ToLoadOptions(const server::ModelOptions& options, Isa isa);
// LoadOptions::device: null for the CPUs, else CUDA's number `index`.
absl::StatusOr<std::shared_ptr<const engine::ModelDevice>> OpenDevice(
    const server::ModelOptions& options, const DeviceChoice& choice, int index);

struct LoadedModel {
  DeviceChoice device;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<engine::Model> model;
  std::unique_ptr<engine::Tokenizer> tokenizer;
  double load_seconds = 0.0;
};

// Loads tokenizer and weights, showing progress on standard error; `on_progress` (may be null) is
// told of the same.
absl::StatusOr<LoadedModel> LoadModel(
    const server::ModelOptions& options,
    const std::function<void(int64_t, int64_t)>& on_progress = {});

// "models/stories-llama/" -> "stories-llama"
std::string ModelNameFromPath(const std::string& path);

// Indented JSON; text that is not UTF-8 (a path may be anything) has its invalid bytes replaced.
std::string DumpJson(const nlohmann::ordered_json& json);

// "1 thread", "2 threads"
std::string Counted(int64_t count, const char* thing);
// "4.2 M", "1.24 B"
std::string HumanCount(int64_t count);
// "8.4 MB", "1.31 GB" (powers of ten)
std::string HumanBytes(int64_t bytes);

}  // namespace nibble::cli
