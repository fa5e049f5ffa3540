// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/bench_command.h"

#include <unistd.h>

#include <cstdio>
#include <new>
#include <optional>
#include <string_view>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "bench/device_probe.h"
#include "bench/limits.h"
#include "bench/random_model.h"
#include "server/cli/commands.h"
#include "server/cli/model_backend.h"
#include "server/cli/model_setup.h"
#include "server/cli/parallel_setup.h"
#include "server/cli/thread_ranks.h"
#include "server/metrics/rank_metrics.h"

namespace nibble::cli {
namespace {

// For people who watch: the table goes where results do not.
std::FILE* Table() { return isatty(STDERR_FILENO) != 0 ? stderr : nullptr; }

absl::Status ToStatus(const std::vector<std::string>& violations) {
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

// Runs, and prints what comes out. Shapes within every limit may still be larger than the machine.
template <typename Run>
int Print(const Run& run) {
  absl::StatusOr<nlohmann::ordered_json> result;
  try {
    result = run();
  } catch (const std::bad_alloc&) {
    result = ResourceExhausted("memory ran out: smaller shapes, batches or contexts take less");
  }
  if (!result.ok()) return Fail(result.status());
  fmt::print("{}\n", DumpJson(*result));
  return 0;
}

// `run` on a pool of --threads, each on a CPU of its own where that is possible.
template <typename Options, typename Run>
absl::StatusOr<nlohmann::ordered_json> RunOnPool(int threads, const Options& options,
                                                 const Run& run) {
  std::vector<std::string> violations;
  bench::CheckLimits("--threads", {threads}, 0, 1024, &violations);
  options.Validate(&violations);
  NIBBLE_RETURN_IF_ERROR(ToStatus(violations));
  const int num_threads = threads > 0 ? threads : ThreadPool::HostThreads();
  ThreadPool pool(num_threads, ThreadPool::CpusToBind(num_threads));
  pool.BindCaller();
  return run(&pool);
}

// "random:SHAPE" instead of a directory; no tokenizer.
absl::StatusOr<LoadedModel> MakeRandom(std::string_view shape,
                                       const server::ModelOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const engine::ModelConfig config, bench::RandomModelConfig(shape));
  LoadedModel made;
  NIBBLE_ASSIGN_OR_RETURN(made.device, ChooseDevice(options));
  made.pool = std::make_unique<ThreadPool>(made.device.threads, made.device.cpus);
  engine::LoadOptions load = ToLoadOptions(options, made.device.isa);
  NIBBLE_ASSIGN_OR_RETURN(load.device, OpenDevice(options, made.device, 0));
  NIBBLE_ASSIGN_OR_RETURN(made.model, bench::MakeRandomModel(config, load, made.pool.get()));
  return made;
}

template <typename Options>
absl::StatusOr<nlohmann::ordered_json> RunOnModel(
    const server::ModelOptions& model, const Options& options,
    absl::StatusOr<nlohmann::ordered_json> (*run)(const Options&, const bench::ModelSubject&)) {
  std::vector<std::string> violations;
  model.Validate(&violations);
  options.Validate(&violations);
  NIBBLE_RETURN_IF_ERROR(ToStatus(violations));
  const std::optional<std::string_view> shape = bench::RandomShapeOf(model.model);
  NIBBLE_ASSIGN_OR_RETURN(const LoadedModel loaded,
                          shape.has_value() ? MakeRandom(*shape, model) : LoadModel(model));
  loaded.pool->BindCaller();
  std::unique_ptr<bench::DeviceProbe> probe;
  if (loaded.device.is_cuda()) {
    NIBBLE_ASSIGN_OR_RETURN(probe, bench::OpenDeviceProbe(0));
  }
  return run(options, {.model = loaded.model.get(),
                       .isa = loaded.device.isa,
                       .pool = loaded.pool.get(),
                       .probe = probe.get(),
                       .table = Table()});
}

// No pool here: ranks are forked, and each makes its own.
template <typename Options, typename Bench>
int RunOnGroup(const Options& options, const Bench& run) {
  std::vector<std::string> violations;
  options.Validate(&violations);
  const absl::Status status = ToStatus(violations);
  if (!status.ok()) return Fail(status);
  absl::StatusOr<nlohmann::ordered_json> result;
  try {
    result = run(options, Table());
  } catch (const std::bad_alloc&) {
    result = ResourceExhausted("memory ran out: smaller messages or fewer --ranks take less");
  }
  if (!result.ok()) return Fail(result.status());
  if (!result->is_null()) fmt::print("{}\n", DumpJson(*result));
  return 0;
}

// Kernels alone: no pool.
template <typename Options, typename Bench>
int RunOnDevice(const Options& options, const Bench& run) {
  return Print([&]() -> absl::StatusOr<nlohmann::ordered_json> {
    std::vector<std::string> violations;
    options.Validate(&violations);
    NIBBLE_RETURN_IF_ERROR(ToStatus(violations));
    return run(options, Table());
  });
}

}  // namespace

int RunBenchGemm(const BenchOptions& options) {
  return Print([&] {
    if (options.gemm_device == "cuda") {
      return RunOnPool(options.threads, options.cuda_gemm, [&](ThreadPool* pool) {
        return bench::RunCudaGemmBench(options.cuda_gemm, pool, Table());
      });
    }
    return RunOnPool(options.threads, options.gemm, [&](ThreadPool* pool) {
      return bench::RunGemmBench(options.gemm, pool, Table());
    });
  });
}

int RunBenchGroupedGemm(const BenchOptions& options) {
  const absl::StatusOr<Isa> isa = ChooseIsa();
  if (!isa.ok()) return Fail(isa.status());
  return Print([&] {
    return RunOnPool(options.threads, options.grouped_gemm, [&](ThreadPool* pool) {
      return bench::RunGroupedGemmBench(options.grouped_gemm, *isa, pool, Table());
    });
  });
}

int RunBenchLayer(const BenchOptions& options) {
  const absl::StatusOr<Isa> isa = ChooseIsa();
  if (!isa.ok()) return Fail(isa.status());
  return Print([&] {
    return RunOnPool(options.threads, options.layer, [&](ThreadPool* pool) {
      return bench::RunLayerBench(options.layer, *isa, pool, Table());
    });
  });
}

int RunBenchAttention(const BenchOptions& options) {
  if (options.attention_device == "cuda") {
    return RunOnDevice(options.cuda_attention, bench::RunCudaAttentionBench);
  }
  const absl::StatusOr<Isa> isa = ChooseIsa();
  if (!isa.ok()) return Fail(isa.status());
  return Print([&] {
    return RunOnPool(options.threads, options.attention, [&](ThreadPool* pool) {
      return bench::RunAttentionBench(options.attention, *isa, pool, Table());
    });
  });
}

int RunBenchAllReduce(const BenchOptions& options) {
  if (options.allreduce_device == "cuda") {
    LoadKernelsAtStart();
    return RunOnDevice(options.cuda_allreduce, bench::RunCudaAllReduceBench);
  }
  return RunOnGroup(options.allreduce, bench::RunAllReduceBench);
}

int RunBenchMoe(const BenchOptions& options) {
  const absl::StatusOr<Isa> isa = ChooseIsa();
  if (!isa.ok()) return Fail(isa.status());
  return Print([&] {
    return RunOnPool(options.threads, options.moe, [&](ThreadPool* pool) {
      return bench::RunMoeBench(options.moe, *isa, pool, Table());
    });
  });
}

int RunBenchMoeLayout(const BenchOptions& options) {
  return RunOnGroup(options.moe_layout, bench::RunMoeLayoutBench);
}

int RunBenchCodec(const BenchOptions& options) {
  if (options.codec_device == "cuda") {
    return RunOnDevice(options.cuda_codec, bench::RunCudaCodecBench);
  }
  const absl::StatusOr<Isa> isa = ChooseIsa();
  if (!isa.ok()) return Fail(isa.status());
  return Print([&] {
    return RunOnPool(options.threads, options.codec, [&](ThreadPool* pool) {
      return bench::RunCodecBench(options.codec, *isa, pool, Table());
    });
  });
}

int RunBenchActivations(const BenchOptions& options) {
  return Print([&]() -> absl::StatusOr<nlohmann::ordered_json> {
    std::vector<std::string> violations;
    server::ModelOptions model = options.model;
    if (model.device == "cuda") {
      violations.push_back(
          "--device is cuda, but what is recorded are sums of this host: want cpu");
    }
    if (model.device == "auto") model.device = "cpu";
    model.Validate(&violations);
    options.activations.Validate(&violations);
    bench::CheckLimits("--tensor-parallel-size", {options.parallel.tensor_parallel_size}, 2, 64,
                       &violations);
    NIBBLE_RETURN_IF_ERROR(ToStatus(violations));
    NIBBLE_ASSIGN_OR_RETURN(
        const ThreadRanks ranks,
        LoadThreadRanks(model, options.parallel,
                        comm::AllReduceOptions{.mode = comm::AllReduceOptions::Mode::kNone}));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                            ReadTextIds(options.data, options.activations.tokens, ranks));
    const std::vector<engine::PerplexityRank> places = ranks.Places();
    return bench::RunActivationBench(
        options.activations,
        {.ranks = places, .ids = ids, .isa = ranks.device.isa, .table = Table()});
  });
}

int RunBenchDecode(const BenchOptions& options) {
  return Print([&] { return RunOnModel(options.model, options.decode, bench::RunDecodeBench); });
}

int RunBenchPrefill(const BenchOptions& options) {
  return Print([&] { return RunOnModel(options.model, options.prefill, bench::RunPrefillBench); });
}

int RunBenchStepChannel(const BenchOptions& options) {
  return Print([&]() -> absl::StatusOr<nlohmann::ordered_json> {
    std::vector<std::string> violations;
    options.step_channel.Validate(&violations);
    NIBBLE_RETURN_IF_ERROR(ToStatus(violations));
    server::ServeConfig config{.model = options.model, .parallel = options.parallel};
    config.max_num_seqs = 1;  // the cache is not used
    NIBBLE_RETURN_IF_ERROR(config.Validate());
    server::RankMetrics metrics("", NodeOfRank(config.parallel));
    NIBBLE_ASSIGN_OR_RETURN(const ModelBackend backend, StartRanks(config, &metrics));
    return bench::RunStepChannelBench(options.step_channel,
                                      {.executor = backend.executor.get(),
                                       .num_ranks = config.parallel.tensor_parallel_size,
                                       .table = Table()});
  });
}

}  // namespace nibble::cli
