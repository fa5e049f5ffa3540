// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/config.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "fmt/ranges.h"

#include "base/cpu_list.h"

namespace nibble::server {
namespace {

void CheckRange(std::string_view option, int64_t value, int64_t low, int64_t high,
                std::vector<std::string>* violations) {
  if (value < low || value > high) {
    violations->push_back(fmt::format("{} is {}, want {} to {}", option, value, low, high));
  }
}

void CheckChoice(std::string_view option, const std::string& value,
                 std::initializer_list<std::string_view> choices,
                 std::vector<std::string>* violations) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
    violations->push_back(
        fmt::format("{} is '{}', want {}", option, value, fmt::join(choices, ", ")));
  }
}

}  // namespace

void ModelOptions::Validate(std::vector<std::string>* violations) const {
  if (model.empty()) violations->push_back("MODEL is missing: name a model directory");
  CheckChoice("--device", device, {"auto", "cpu", "cuda"}, violations);
  CheckChoice("--dtype", dtype, {"auto", "float32", "bfloat16", "float16"}, violations);
  CheckChoice("--kv-cache-dtype", kv_cache_dtype,
              {"auto", "float32", "bfloat16", "float16", "int8"}, violations);
  CheckChoice("--quantization", quantization, {"none", "w4a8", "w8a8", "w4a16"}, violations);
  CheckChoice("--head-quantization", head_quantization, {"auto", "none", "int8", "int4"},
              violations);
  CheckRange("--threads", threads, 0, 1024, violations);
  if (cpu_binding != "auto" && cpu_binding != "none") {
    const auto cpus = ParseCpuList(cpu_binding);
    if (!cpus.ok()) {
      violations->push_back(
          fmt::format("--cpu-binding: {}; or auto, none", std::string(cpus.status().message())));
    } else if (threads > 0 && cpus->size() != static_cast<size_t>(threads)) {
      violations->push_back(fmt::format(
          "--cpu-binding names {} CPUs, --threads is {}: want one each", cpus->size(), threads));
    }
  }
}

absl::Status ServeConfig::Validate() const {
  std::vector<std::string> violations;
  model.Validate(&violations);
  if (host.empty()) violations.push_back("--host is empty, want an address such as 127.0.0.1");
  CheckRange("--port", port, 0, 65535, &violations);
  CheckRange("--grpc-port", grpc_port, -1, 65535, &violations);
  if (port != 0 && port == grpc_port) {
    violations.push_back(fmt::format("--port and --grpc-port are both {}, want two ports", port));
  }
  CheckRange("--max-model-len", max_model_len, 0, int64_t{1} << 24, &violations);
  CheckRange("--max-num-seqs", max_num_seqs, 1, 4096, &violations);
  CheckRange("--max-num-batched-tokens", max_num_batched_tokens, max_num_seqs, int64_t{1} << 20,
             &violations);
  CheckRange("--max-queued-requests", max_queued_requests, 1, 1'000'000, &violations);
  CheckRange("--block-size", block_size, 1, 256, &violations);
  CheckRange("--kv-cache-memory-bytes", kv_cache_memory_bytes, 0, int64_t{1} << 44, &violations);
  CheckRange("--seed", seed, 0, INT64_MAX, &violations);
  CheckRange("--http-threads", http_threads, 1, 64, &violations);
  CheckRange("--max-body-bytes", max_body_bytes, 1024, int64_t{1} << 30, &violations);
  CheckRange("--shutdown-timeout", shutdown_timeout_seconds, 0, 86400, &violations);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

}  // namespace nibble::server
