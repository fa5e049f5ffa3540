// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/config.h"

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <string_view>
#include <system_error>
#include <utility>

#include "fmt/ranges.h"

#include "base/cpu_list.h"

namespace nibble::server {
namespace {

constexpr int kMaxRanksOfAStage = 64;  // comm::GroupMember's
constexpr int kMaxStages = 64;
constexpr int kMaxRanks = 1024;  // engine::kMaxRanks

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

// What one node has no use for.
void CheckOneNode(const ParallelOptions& options, std::vector<std::string>* violations) {
  for (const auto& [option, value] :
       {std::pair("--master-addr", &options.master_addr),
        std::pair("--node-addr", &options.node_addr),
        std::pair("--cluster-secret-file", &options.cluster_secret_file),
        std::pair("--cluster-tls-ca", &options.cluster_tls_ca)}) {
    if (!value->empty()) violations->push_back(fmt::format("{} needs --nnodes 2 or more", option));
  }
}

void CheckNodes(const ParallelOptions& options, std::vector<std::string>* violations) {
  const int nnodes = options.nnodes;
  CheckRange("--nnodes", nnodes, 1, 64, violations);
  if (nnodes == 1 && options.node_rank > 0) {
    violations->push_back(fmt::format("--node-rank is {}: --nnodes is missing", options.node_rank));
  } else {
    CheckRange("--node-rank", options.node_rank, 0, std::max(nnodes, 1) - 1, violations);
  }
  CheckRange("--master-port", options.master_port, 1, 65535, violations);
  if (nnodes == 1) CheckOneNode(options, violations);
  if (nnodes <= 1) return;
  if (options.world_size() % nnodes != 0) {
    violations->push_back(fmt::format(
        "--pipeline-parallel-size {} x --tensor-parallel-size {} are {}, want a multiple of "
        "--nnodes ({}): every node has as many",
        options.pipeline_parallel_size, options.tensor_parallel_size,
        options.world_size() == 1 ? "1 rank" : fmt::format("{} ranks", options.world_size()),
        nnodes));
  }
  if (options.master_addr.empty())
    violations->push_back("--master-addr is missing: with --nnodes, name the address of node 0");
  if (options.cluster_secret_file.empty() && options.cluster_secret.empty() &&
      options.cluster_tls_ca.empty()) {
    violations->push_back(
        "--nnodes needs --cluster-secret-file, NIBBLE_CLUSTER_SECRET in the environment, or "
        "--cluster-tls-ca, -cert and -key: whoever reaches --master-port could join");
  }
}

void CheckTls(const ParallelOptions& options, std::vector<std::string>* violations) {
  const auto files = {options.cluster_tls_ca.empty(), options.cluster_tls_cert.empty(),
                      options.cluster_tls_key.empty()};
  const auto num_missing = std::count(files.begin(), files.end(), true);
  if (num_missing == 1 || num_missing == 2) {
    violations->push_back(
        "--cluster-tls-ca, --cluster-tls-cert and --cluster-tls-key: want all three or none");
  }
  if (!options.cluster_tls_server_name.empty() && num_missing == 3) {
    violations->push_back("--cluster-tls-server-name needs --cluster-tls-ca, -cert and -key");
  }
}

// Also by another name.
bool IsSameFile(const std::string& a, const std::string& b) {
  std::error_code error;
  if (std::filesystem::equivalent(a, b, error)) return true;
  const auto canonical = [&error](const std::string& path) {
    const auto found = std::filesystem::weakly_canonical(path, error);
    return error ? std::filesystem::path(path) : found;
  };
  return canonical(a) == canonical(b);
}

}  // namespace

std::vector<std::string> ModelOptions::DeviceOptions() const {
  const ModelOptions defaults;
  std::vector<std::string> names;
  if (gpu_memory_utilization != defaults.gpu_memory_utilization) {
    names.push_back("--gpu-memory-utilization");
  }
  if (enforce_eager != defaults.enforce_eager) names.push_back("--enforce-eager");
  if (attention_backend != defaults.attention_backend) names.push_back("--attention-backend");
  return names;
}

void ModelOptions::Validate(std::vector<std::string>* violations) const {
  if (model.empty()) violations->push_back("MODEL is missing: name a model directory");
  CheckChoice("--device", device, {"auto", "cpu", "cuda"}, violations);
  CheckChoice("--dtype", dtype, {"auto", "float32", "bfloat16", "float16"}, violations);
  CheckChoice("--kv-cache-dtype", kv_cache_dtype,
              {"auto", "float32", "bfloat16", "float16", "int8"}, violations);
  CheckChoice("--quantization", quantization, {"none", "w4a8", "w8a8", "w4a16"}, violations);
  CheckChoice("--head-quantization", head_quantization, {"auto", "none", "int8", "int4"},
              violations);
  if (!(gpu_memory_utilization > 0.0 && gpu_memory_utilization <= kMaxGpuMemoryUtilization)) {
    violations->push_back(fmt::format(
        "--gpu-memory-utilization is {}, want more than 0 and at most {}: the driver and captured "
        "graphs take the rest",
        gpu_memory_utilization, kMaxGpuMemoryUtilization));
  }
  CheckChoice("--attention-backend", attention_backend, {"auto", "nibble", "flashinfer"},
              violations);
  if (batch_invariant && attention_backend == "flashinfer") {
    violations->push_back(
        "--batch-invariant: --attention-backend flashinfer cuts sequences by the batch that they "
        "are in, want nibble or auto");
  }
  if (device == "cpu") {
    for (const std::string& name : DeviceOptions()) {
      violations->push_back(fmt::format("{} is of --device cuda, --device is cpu", name));
    }
  }
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

void AllReduceFlags::Validate(std::vector<std::string>* violations) const {
  CheckChoice("--all-reduce", all_reduce,
              {"auto", "none", "float32", "bf16", "int8", "int6", "int5", "int4", "int3", "int2"},
              violations);
  if (group_size != 32 && group_size != 64 && group_size != 128) {
    violations->push_back(
        fmt::format("--all-reduce-group-size is {}, want 32, 64, 128", group_size));
  }
  CheckChoice("--all-reduce-scale", scale, {"bf16", "log2"}, violations);
  if ((all_reduce == "none" || all_reduce == "float32" || all_reduce == "bf16") &&
      *this != AllReduceFlags{.all_reduce = all_reduce}) {
    violations->push_back(
        fmt::format("--all-reduce {} has no groups: --all-reduce-group-size, -scale, -spikes and "
                    "rotation go with auto and int8 to int2",
                    all_reduce));
  }
}

std::vector<std::string> ExpertOptions::Given() const {
  std::vector<std::string> given;
  if (enable_expert_parallel) given.push_back("--enable-expert-parallel");
  if (expert_parallel_size != 0) {
    given.push_back(fmt::format("--expert-parallel-size {}", expert_parallel_size));
  }
  if (check_routing) given.push_back("--check-routing");
  if (!expert_load.empty()) given.push_back(fmt::format("--expert-load {}", expert_load));
  if (num_redundant_experts != 0) {
    given.push_back(fmt::format("--num-redundant-experts {}", num_redundant_experts));
  }
  if (!record_expert_load.empty()) {
    given.push_back(fmt::format("--record-expert-load {}", record_expert_load));
  }
  if (max_expert_series != ExpertOptions{}.max_expert_series) {
    given.push_back(fmt::format("--max-expert-series {}", max_expert_series));
  }
  return given;
}

void ExpertOptions::Validate(int tensor_parallel_size, std::vector<std::string>* violations) const {
  CheckRange("--expert-parallel-size", expert_parallel_size, 0, kMaxRanksOfAStage, violations);
  CheckRange("--num-redundant-experts", num_redundant_experts, 0, 4096, violations);
  CheckRange("--max-expert-series", max_expert_series, 0, 1'000'000, violations);
  if (enable_expert_parallel && expert_parallel_size != 0 &&
      expert_parallel_size != tensor_parallel_size) {
    violations->push_back(fmt::format(
        "--enable-expert-parallel means --expert-parallel-size {} (--tensor-parallel-size), given "
        "is --expert-parallel-size {}: want one of the two",
        tensor_parallel_size, expert_parallel_size));
  }
  if (expert_parallel_size > 0 && tensor_parallel_size > 0 &&
      tensor_parallel_size % expert_parallel_size != 0) {
    violations->push_back(
        fmt::format("--expert-parallel-size is {}, want a divisor of --tensor-parallel-size ({})",
                    expert_parallel_size, tensor_parallel_size));
  }
  if (tensor_parallel_size == 1 && (enable_expert_parallel || check_routing)) {
    violations->push_back(
        fmt::format("{} needs --tensor-parallel-size 2 or more",
                    enable_expert_parallel ? "--enable-expert-parallel" : "--check-routing"));
  }
  if (num_redundant_experts > 0 && expert_load.empty()) {
    violations->push_back(fmt::format(
        "--num-redundant-experts is {}: --expert-load FILE is missing, which says what to copy",
        num_redundant_experts));
  }
  if (!record_expert_load.empty() && IsSameFile(expert_load, record_expert_load)) {
    violations->push_back(
        fmt::format("--record-expert-load {} is the file of --expert-load, which the next start "
                    "would take for the layout: want another one",
                    record_expert_load));
  }
}

int ParallelOptions::world_size() const {
  // Also of options that are yet to be refused.
  constexpr int64_t kFarTooMany = int64_t{1} << 20;
  return static_cast<int>(std::clamp(int64_t{pipeline_parallel_size} * tensor_parallel_size,
                                     -kFarTooMany, kFarTooMany));
}

void ParallelOptions::Validate(std::vector<std::string>* violations) const {
  CheckRange("--tensor-parallel-size", tensor_parallel_size, 1, kMaxRanksOfAStage, violations);
  CheckRange("--pipeline-parallel-size", pipeline_parallel_size, 1, kMaxStages, violations);
  if (world_size() > kMaxRanks) {
    violations->push_back(fmt::format(
        "--pipeline-parallel-size {} x --tensor-parallel-size {} are {} ranks, want {} at most",
        pipeline_parallel_size, tensor_parallel_size, world_size(), kMaxRanks));
  }
  CheckChoice("--distributed-executor-backend", distributed_executor_backend, {"auto", "mp", "uni"},
              violations);
  if (world_size() > 1 && distributed_executor_backend == "uni") {
    violations->push_back(fmt::format(
        "--distributed-executor-backend is uni, want auto or mp with {} ranks: each is a process",
        world_size()));
  }
  CheckRange("--rank-threads", rank_threads, 0, 1024, violations);
  if (world_size() == 1 && rank_threads > 0) {
    violations->push_back(fmt::format(
        "--rank-threads is {}, want 0 with one rank: --threads says what it has", rank_threads));
  }
  CheckNodes(*this, violations);
  CheckTls(*this, violations);
  all_reduce.Validate(violations);
  const bool asks_for_nothing =
      all_reduce == AllReduceFlags{} || all_reduce == AllReduceFlags{.all_reduce = "none"};
  if (tensor_parallel_size == 1 && (!asks_for_nothing || all_reduce_measure)) {
    violations->push_back(
        "--tensor-parallel-size is 1, which leaves nothing to sum: --all-reduce goes with 2 or "
        "more, and so do its companions; want none or auto");
  }
  CheckRange("--rank-timeout", rank_timeout_seconds, 1, 3600, violations);
  CheckRange("--group-timeout", group_timeout_seconds, 1, 86400, violations);
  experts.Validate(tensor_parallel_size, violations);
}

absl::Status ServeConfig::Validate() const {
  std::vector<std::string> violations;
  model.Validate(&violations);
  parallel.Validate(&violations);
  if (parallel.world_size() > 1 && model.threads > 0) {
    violations.push_back(
        fmt::format("--threads is {}, want 0 with several ranks: --rank-threads says what each has",
                    model.threads));
  }
  if (model.batch_invariant && parallel.tensor_parallel_size > 1 &&
      parallel.all_reduce.all_reduce == "auto") {
    violations.push_back(
        "--batch-invariant: --all-reduce auto goes by the size of a step, want another one");
  }
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
  guards.Validate(&violations);
  lifecycle.Validate(&violations);
  if (const int probes = lifecycle.health_port;
      probes > 0 && (probes == port || probes == grpc_port)) {
    violations.push_back(fmt::format("--health-port and {} are both {}, want two ports",
                                     probes == port ? "--port" : "--grpc-port", probes));
  }
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

}  // namespace nibble::server
