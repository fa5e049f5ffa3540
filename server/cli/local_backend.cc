// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <utility>

#include "engine/exec/local_executor.h"
#include "engine/model/model.h"
#include "server/cli/model_backend.h"
#include "server/cli/model_setup.h"
#include "server/cli/parallel_setup.h"
#include "server/cli/step_sizing.h"

namespace nibble::cli {
namespace {

// A line of the banner.
std::string DescribeDevice(const LoadedModel& loaded) {
  const DeviceChoice& device = loaded.device;
  const std::string what =
      device.is_cuda() ? loaded.model->device_name()
                       : fmt::format("{}, {}, {}{}", HostCpuFeatures().name, ToString(device.isa),
                                     Counted(device.threads, "thread"),
                                     device.cpus.empty() ? "" : ", one to a CPU");
  return fmt::format("  device     {}: {} ({})\n", device.device, what, device.reason);
}

}  // namespace

absl::StatusOr<ModelBackend> StartLocalModel(const server::ServeConfig& config,
                                             const StartWatch& watch) {
  ModelBackend backend;
  NIBBLE_RETURN_IF_ERROR(CheckModelDirectory(config.model.model));
  NIBBLE_ASSIGN_OR_RETURN(backend.model, engine::LoadModelConfig(config.model.model));
  NIBBLE_ASSIGN_OR_RETURN(backend.experts, SetUpExperts(config.parallel, backend.model,
                                                        ToLoadOptions(config.model, Isa::kRef)));
  watch.Begin("loading weights");
  NIBBLE_ASSIGN_OR_RETURN(LoadedModel loaded, LoadModel(config.model, watch.on_progress));
  backend.tokenizer = std::move(loaded.tokenizer);
  backend.pool = std::move(loaded.pool);
  backend.quantization_name = loaded.model->quantization_name();
  backend.weight_bytes = loaded.model->weight_bytes();
  backend.kv_dtype = loaded.model->kv_dtype();
  backend.load_seconds = loaded.load_seconds;
  NIBBLE_ASSIGN_OR_RETURN(backend.max_model_len,
                          ChooseMaxModelLen(config, backend.model.max_position_embeddings));
  watch.Begin("taking memory");
  // Before the cache takes its share of what memory is free.
  const engine::StepLimits limits = {.max_tokens = config.max_num_batched_tokens,
                                     .max_positions = backend.max_model_len,
                                     .max_samples = config.max_num_seqs,
                                     .max_seqs = config.max_num_seqs,
                                     .block_size = config.block_size};
  NIBBLE_RETURN_IF_ERROR(ReserveStep(loaded.model.get(), limits,
                                     NeighborsOf(config, backend.max_model_len, 1),
                                     backend.pool.get()));
  backend.device = DescribeDevice(loaded);
  const engine::KvMemory memory = loaded.model->kv_memory();
  const engine::StepCosts costs = engine::CostsOf(*loaded.model, limits);
  const KvHost host{.name = "",
                    .block_bytes = engine::KvCache::BlockBytes(loaded.model->rank_config(),
                                                               config.block_size, backend.kv_dtype),
                    .available_bytes = memory.available_bytes -
                                       loaded.model->host_logits_bytes(limits.max_samples),
                    .memory_is_own = memory.is_own,
                    .total_bytes = memory.total_bytes,
                    .step_token_bytes = costs.token_bytes,
                    .step_seq_bytes = costs.seq_bytes};
  NIBBLE_ASSIGN_OR_RETURN(backend.kv, SizeKvCache(config, backend.max_model_len, {&host, 1}));
  const engine::LocalExecutorOptions options = {
      .block_size = config.block_size,
      .num_blocks = backend.kv.num_blocks,
      .max_model_len = backend.max_model_len,
      .max_num_batched_tokens = config.max_num_batched_tokens,
      .max_num_seqs = config.max_num_seqs};
  NIBBLE_ASSIGN_OR_RETURN(
      backend.executor,
      engine::LocalExecutor::Create(std::move(loaded.model), options, backend.pool.get()));
  return backend;
}

}  // namespace nibble::cli
