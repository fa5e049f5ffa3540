// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/parallel_setup.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "fmt/ranges.h"

#include "base/log.h"
#include "base/mapped_file.h"
#include "engine/model/memory.h"
#include "server/cli/cuda_engine.h"
#include "server/cli/fingerprint.h"
#include "server/cli/start_error.h"
#include "server/cli/step_sizing.h"
#include "server/cli/version.h"
#include "server/http/http_server.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxSecretFileBytes = 8192;
constexpr size_t kMaxPemBytes = size_t{1} << 20;

const char* LogLevelName() {
  if (log::Enabled(log::Level::kDebug)) return "debug";
  if (log::Enabled(log::Level::kInfo)) return "info";
  if (log::Enabled(log::Level::kWarning)) return "warning";
  return log::Enabled(log::Level::kError) ? "error" : "off";
}

// What starts a rank: this program, unless a script that starts it by naming the linker (as the GPU
// pack's on a machine with an older C library) says that it is needed: /proc/self/exe is the linker
// then.
std::string RankProgram() {
  const char* const named = std::getenv("NIBBLE_RANK_PROGRAM");
  return named != nullptr && *named != '\0' ? named : "/proc/self/exe";
}

std::vector<std::string> RankCommand(const server::ServeConfig& config, const HostSetup& host,
                                     int rank, const RankPlacement& placement) {
  const server::ModelOptions& model = config.model;
  const StepNeighbors neighbors =
      NeighborsOf(config, host.max_model_len, config.parallel.ranks_per_node());
  const std::string binding =
      placement.cpus.empty() ? "none" : fmt::format("{}", fmt::join(placement.cpus, ","));
  std::vector<std::string> command = {
      RankProgram(),
      "--log-level",
      LogLevelName(),
      "rank",
      model.model,
      "--device",
      host.device.device,
      "--device-index",
      std::to_string(rank - config.parallel.node_rank * config.parallel.ranks_per_node()),
      "--dtype",
      model.dtype,
      "--kv-cache-dtype",
      model.kv_cache_dtype,
      "--quantization",
      model.quantization,
      "--head-quantization",
      model.head_quantization,
      "--threads",
      std::to_string(placement.threads),
      "--cpu-binding",
      binding,
      "--tensor-parallel-size",
      std::to_string(config.parallel.tensor_parallel_size),
      "--pipeline-parallel-size",
      std::to_string(config.parallel.pipeline_parallel_size),
      "--expert-parallel-size",
      std::to_string(host.experts.expert_size),
      "--rank",
      std::to_string(rank),
      "--block-size",
      std::to_string(config.block_size),
      "--max-num-batched-tokens",
      std::to_string(config.max_num_batched_tokens),
      "--max-num-seqs",
      std::to_string(config.max_num_seqs),
      "--max-model-len",
      std::to_string(host.max_model_len),
      "--host-ranks",
      std::to_string(neighbors.num_ranks),
      "--kv-cache-memory-bytes",
      std::to_string(neighbors.kv_cache_memory_bytes),
      "--min-batched-tokens",
      std::to_string(neighbors.min_batched_tokens),
      "--model-fingerprint",
      host.model_fingerprint};
  if (host.device.is_cuda()) {
    command.insert(command.end(),
                   {"--gpu-memory-utilization", fmt::format("{}", model.gpu_memory_utilization),
                    "--attention-backend", model.attention_backend});
    if (model.enforce_eager) command.push_back("--enforce-eager");
  }
  if (model.batch_invariant) command.push_back("--batch-invariant");
  if (config.parallel.experts.check_routing) command.push_back("--check-routing");
  if (host.layout_file != nullptr) {
    command.push_back("--expert-layout");
    command.push_back(host.layout_file->path());
  }
  return command;
}

absl::Status ReadPem(const std::string& path, std::string* text) {
  if (path.empty()) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(*text, ReadFile(path, kMaxPemBytes));
  return absl::OkStatus();
}

// The ranks of this host together: each alone would find the same memory free. Before any of them
// starts, and not when one is started again beside the others, who have theirs.
absl::Status CheckRanksFit(const server::ServeConfig& config, const HostSetup& host) {
  const server::ParallelOptions& parallel = config.parallel;
  engine::LoadOptions load = ToLoadOptions(config.model, host.device.isa);
  load.expert_layout = host.experts.layout;
  std::vector<engine::LoadOptions> ranks;
  for (int i = 0; i < parallel.ranks_per_node(); ++i) {
    load.place = PlaceOf(parallel, host.experts.expert_size,
                         parallel.node_rank * parallel.ranks_per_node() + i);
    ranks.push_back(load);
  }
  return CheckWeightsFit(host.model, ranks, engine::AvailableMemoryBytes());
}

}  // namespace

std::string TakeSecretFromEnvironment() {
  constexpr const char* kName = "NIBBLE_CLUSTER_SECRET";
  const char* value = std::getenv(kName);
  std::string secret = value == nullptr ? "" : value;
  unsetenv(kName);
  return secret;
}

absl::StatusOr<int64_t> ChooseMaxModelLen(const server::ServeConfig& config,
                                          int64_t max_position_embeddings) {
  if (config.max_model_len == 0) return max_position_embeddings;
  if (config.max_model_len > max_position_embeddings) {
    return InvalidArgument("--max-model-len is {}, the model's maximum is {}", config.max_model_len,
                           max_position_embeddings);
  }
  return config.max_model_len;
}

bool RanksAreProcesses(const server::ServeConfig& config) {
  const std::string& backend = config.parallel.distributed_executor_backend;
  if (config.parallel.world_size() > 1 || backend == "mp") return true;
  if (backend == "uni" || config.model.device == "cpu" || !HasCudaEngine()) return false;
  return WhatCudaLacks(config.model).empty() && !CudaDevices().usable.empty();
}

absl::StatusOr<HostSetup> SetUpHost(const server::ServeConfig& config) {
  const server::ParallelOptions& parallel = config.parallel;
  NIBBLE_RETURN_IF_ERROR(CheckModelDirectory(config.model.model));
  HostSetup host;
  NIBBLE_ASSIGN_OR_RETURN(host.device, ChooseDevice(config.model, parallel.ranks_per_node()));
  NIBBLE_ASSIGN_OR_RETURN(host.model, engine::LoadModelConfig(config.model.model));
  NIBBLE_ASSIGN_OR_RETURN(host.experts, SetUpExperts(parallel, host.model,
                                                     ToLoadOptions(config.model, host.device.isa)));
  if (host.experts.layout != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(host.layout_file,
                            MemoryFile::Create(engine::Serialize(*host.experts.layout)));
  }
  NIBBLE_ASSIGN_OR_RETURN(host.max_model_len,
                          ChooseMaxModelLen(config, host.model.max_position_embeddings));
  const int rank_threads =
      parallel.world_size() == 1 ? config.model.threads : parallel.rank_threads;
  NIBBLE_ASSIGN_OR_RETURN(
      host.placement,
      PlaceRanks(config.model, rank_threads, parallel.ranks_per_node(), HostCpus::OfThisProcess()));
  if (!host.placement.warning.empty()) log::Warning("{}", host.placement.warning);
  // Each device holds one rank's, which looks for itself.
  if (!host.device.is_cuda()) NIBBLE_RETURN_IF_ERROR(CheckRanksFit(config, host));
  NIBBLE_ASSIGN_OR_RETURN(host.model_fingerprint, ModelFingerprint(config.model.model));
  return host;
}

comm::LocalRanksOptions LocalRanksFor(const server::ServeConfig& config, const HostSetup& host) {
  const int num_ranks = static_cast<int>(host.placement.ranks.size());
  const int first = config.parallel.node_rank * num_ranks;
  return {.first_rank = first, .num_ranks = num_ranks, .command = [config, host, first](int rank) {
            return RankCommand(config, host, rank,
                               host.placement.ranks.at(static_cast<size_t>(rank - first)));
          }};
}

std::vector<int> NodeOfRank(const server::ParallelOptions& options) {
  std::vector<int> nodes;
  for (int rank = 0; rank < options.world_size(); ++rank) {
    nodes.push_back(rank / options.ranks_per_node());
  }
  return nodes;
}

bool SomeStageSpansNodes(const server::ParallelOptions& options) {
  const std::vector<int> nodes = NodeOfRank(options);
  const auto size = static_cast<size_t>(options.tensor_parallel_size);
  for (size_t first = 0; first < nodes.size(); first += size) {
    if (nodes[first] != nodes[first + size - 1]) return true;
  }
  return false;
}

absl::StatusOr<comm::ClusterSecurity> ReadSecurity(const server::ParallelOptions& options) {
  comm::ClusterSecurity security{.secret = options.cluster_secret,
                                 .tls_server_name = options.cluster_tls_server_name};
  if (!options.cluster_secret_file.empty()) {
    absl::StatusOr<std::string> secret = ReadFile(options.cluster_secret_file, kMaxSecretFileBytes);
    if (!secret.ok()) return Annotate(secret.status(), "--cluster-secret-file");
    // Editors end files with a line feed.
    const size_t end = secret->find_last_not_of(" \t\r\n");
    security.secret = end == std::string::npos ? "" : secret->substr(0, end + 1);
    if (security.secret.empty()) {
      return InvalidArgument("--cluster-secret-file {} is empty", options.cluster_secret_file);
    }
  }
  NIBBLE_RETURN_IF_ERROR(ReadPem(options.cluster_tls_ca, &security.tls_ca));
  NIBBLE_RETURN_IF_ERROR(ReadPem(options.cluster_tls_cert, &security.tls_cert));
  NIBBLE_RETURN_IF_ERROR(ReadPem(options.cluster_tls_key, &security.tls_key));
  return security;
}

absl::Status CheckCluster(const server::ParallelOptions& options) {
  if (options.nnodes == 1) return absl::OkStatus();
  const auto refuse = [](const absl::Status& why) {
    return StartError{.what = "the hosts of the group could not trust each other",
                      .needed =
                          "a secret of 16 to 4096 bytes, the same on all of them, or "
                          "certificates",
                      .there_is = std::string(why.message()),
                      .remedies = {"openssl rand -hex 32 > FILE, and --cluster-secret-file FILE "
                                   "on every host"}}
        .ToStatus(why.code());
  };
  const absl::StatusOr<comm::ClusterSecurity> security = ReadSecurity(options);
  if (!security.ok()) return refuse(security.status());
  const absl::Status valid = comm::Validate(ShapeOf(options), {}, *security, HeartbeatOf(options));
  if (!valid.ok()) return refuse(valid);
  if (options.node_rank > 0) return absl::OkStatus();
  const std::string& address = options.node_addr.empty() ? options.master_addr : options.node_addr;
  const absl::Status free = server::HttpServer::CheckAddress(address, options.master_port);
  // A name is looked up by who listens there.
  if (!absl::IsUnavailable(free)) return absl::OkStatus();
  return CannotListen("--master-port", address, options.master_port, free);
}

comm::ClusterShape ShapeOf(const server::ParallelOptions& options) {
  return {.num_nodes = options.nnodes, .ranks_per_node = options.ranks_per_node()};
}

comm::ClusterIdentity IdentityOf(const server::ServeConfig& config, const HostSetup& host) {
  return {.version = kVersion,
          .model_fingerprint = host.model_fingerprint,
          .options_fingerprint = fmt::format(
              "{}, --device={}{}", OptionsFingerprint(config), host.device.device,
              host.model.moe.has_value()
                  ? ExpertsFingerprint(config.parallel.experts, host.experts, host.device.isa)
                  : "")};
}

comm::HeartbeatOptions HeartbeatOf(const server::ParallelOptions& options) {
  // Several in the time of silence, so that one that is late costs nothing.
  const std::chrono::milliseconds timeout = std::chrono::seconds(options.rank_timeout_seconds);
  return {
      .interval = std::min<std::chrono::milliseconds>(timeout / 8, std::chrono::milliseconds(500)),
      .timeout = timeout};
}

}  // namespace nibble::cli
