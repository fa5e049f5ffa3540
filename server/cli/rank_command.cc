// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble rank: one of the ranks that share a model, started by the server of its host.
#include <csignal>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fmt/ranges.h"

#include "base/log.h"
#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "comm/ranks/frame_channel.h"
#include "engine/exec/rank_server.h"
#include "server/cli/commands.h"
#include "server/cli/expert_setup.h"
#include "server/cli/fingerprint.h"
#include "server/cli/model_setup.h"
#include "server/cli/step_sizing.h"

namespace nibble::cli {
namespace {

// Twice what the largest layout takes: kMaxSlots x kMaxLayoutLayers.
constexpr size_t kMaxLayoutBytes = size_t{64} << 20;

absl::Status Validate(const RankOptions& options) {
  std::vector<std::string> violations;
  options.model.Validate(&violations);
  const auto check = [&](const char* option, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      violations.push_back(fmt::format("{} is {}, want {} to {}", option, value, low, high));
    }
  };
  check("--tensor-parallel-size", options.tensor_parallel_size, 1, 64);
  check("--pipeline-parallel-size", options.pipeline_parallel_size, 1, 64);
  check("--expert-parallel-size", options.expert_parallel_size, 1, options.tensor_parallel_size);
  if (options.expert_parallel_size > 0 &&
      options.tensor_parallel_size % options.expert_parallel_size != 0) {
    violations.push_back(
        fmt::format("--expert-parallel-size is {}, want a divisor of --tensor-parallel-size ({})",
                    options.expert_parallel_size, options.tensor_parallel_size));
  }
  check("--rank", options.rank, 0,
        int64_t{options.pipeline_parallel_size} * options.tensor_parallel_size - 1);
  check("--device-index", options.device_index, 0, 1023);
  check("--control-fd", options.control_fd, 3, 1 << 20);
  check("--block-size", options.block_size, 1, 256);
  check("--max-num-batched-tokens", options.max_num_batched_tokens, 1, int64_t{1} << 20);
  check("--max-num-seqs", options.max_num_seqs, 1, 4096);
  check("--host-ranks", options.host_ranks, 1, 1024);
  check("--kv-cache-memory-bytes", options.kv_cache_memory_bytes, 0, int64_t{1} << 44);
  check("--min-batched-tokens", options.min_batched_tokens, 1, int64_t{1} << 24);
  check("--max-model-len", options.max_model_len, 1, int64_t{1} << 24);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

// Files that changed while the server ran: this rank would be one of another model than the others.
absl::Status CheckModel(const RankOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string found, ModelFingerprint(options.model.model));
  if (found == options.model_fingerprint) return absl::OkStatus();
  return InvalidArgument(
      "the files in {} are no longer those that the server was started with: put these back, or "
      "restart the server",
      options.model.model);
}

absl::Status Serve(const RankOptions& options) {
  NIBBLE_RETURN_IF_ERROR(Validate(options));
  NIBBLE_RETURN_IF_ERROR(CheckModel(options));
  NIBBLE_ASSIGN_OR_RETURN(const DeviceChoice device,
                          ChooseDevice(options.model, options.device_index + 1));
  ThreadPool pool(device.threads, device.cpus);
  engine::RankServerOptions server;
  server.model_dir = options.model.model;
  server.load = ToLoadOptions(options.model, device.isa);
  NIBBLE_ASSIGN_OR_RETURN(server.load.device,
                          OpenDevice(options.model, device, options.device_index));
  const server::ParallelOptions shape{.tensor_parallel_size = options.tensor_parallel_size,
                                      .pipeline_parallel_size = options.pipeline_parallel_size};
  server.load.place = PlaceOf(shape, options.expert_parallel_size, options.rank);
  server.load.check_routing = options.check_routing;
  if (!options.expert_layout.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text,
                            ReadFile(options.expert_layout, kMaxLayoutBytes));
    NIBBLE_ASSIGN_OR_RETURN(engine::ExpertLayout layout,
                            engine::ParseExpertLayout(text, "--expert-layout"));
    server.load.expert_layout = std::make_shared<const engine::ExpertLayout>(std::move(layout));
  }
  server.block_size = options.block_size;
  server.limits = {.max_tokens = options.max_num_batched_tokens,
                   .max_positions = options.max_model_len,
                   .max_samples = options.max_num_seqs,
                   .max_seqs = options.max_num_seqs,
                   .block_size = options.block_size};
  const StepNeighbors neighbors{.num_ranks = options.host_ranks,
                                .kv_cache_memory_bytes = options.kv_cache_memory_bytes,
                                .min_batched_tokens = options.min_batched_tokens,
                                .gpu_memory_utilization = options.model.gpu_memory_utilization};
  server.reserve = [neighbors](engine::Model* model, const engine::StepLimits& limits,
                               ThreadPool* workers) {
    return ReserveStep(model, limits, neighbors, workers);
  };
  const std::unique_ptr<comm::FrameChannel> channel = comm::MakeSocketChannel(options.control_fd);
  return engine::RunRankServer(channel.get(), server, &pool);
}

}  // namespace

int RunRank(const RankOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);  // a driver that went away is an error code, not a signal
  const absl::Status status = Serve(options);
  if (status.ok()) return 0;
  // The driver is gone, which is told by itself or by what ended it.
  if (absl::IsUnavailable(status)) return 1;
  return Fail(Annotate(status, fmt::format("rank {}", options.rank)));
}

}  // namespace nibble::cli
