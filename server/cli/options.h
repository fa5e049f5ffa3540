// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which options a command has: one function each. CLI11 stays in the options*.cc, for its header
// costs seconds per source.
#pragma once

#include <functional>

#include "client/http/client_security.h"
#include "server/cli/bench_command.h"
#include "server/cli/commands.h"
#include "server/config.h"

namespace CLI {
class App;
}

namespace nibble::cli {

// options_model.cc
void AddModelOptions(CLI::App* app, server::ModelOptions* options);
// Of commands whose KV cache takes what a device has left.
void AddDeviceMemoryOption(CLI::App* app, server::ModelOptions* options);
// `has_auto`: the command has links that can be measured.
void AddAllReduceOptions(CLI::App* app, server::AllReduceFlags* options, bool has_auto);
void AddPipelineOption(CLI::App* app, int* pipeline_parallel_size);
// How ranks share experts.
void AddExpertParallelOptions(CLI::App* app, server::ExpertOptions* options);
void AddPerplexity(CLI::App* app, PerplexityOptions* options);
void AddInspect(CLI::App* app, InspectOptions* options);
void AddQuantize(CLI::App* app, QuantizeOptions* options);

// options_guards.cc
void AddGuardOptions(CLI::App* app, server::GuardOptions* options);

// options_lifecycle.cc
void AddLifecycleOptions(CLI::App* app, server::LifecycleOptions* options);

// options_load.cc
void AddClientSecurity(CLI::App* app, client::ClientSecurity* security);
void AddBenchServe(CLI::App* app, BenchOptions* options);
void AddBenchSweep(CLI::App* app, BenchOptions* options);

// options_serve.cc
void AddServe(CLI::App* app, server::ServeConfig* config);
void AddRank(CLI::App* app, RankOptions* options);

// options_bench_cuda.cc: --device of these commands. CPU options of the same command are there
// already.
void AddSave(CLI::App* app, std::string* file);
void AddCudaGemm(CLI::App* app, BenchOptions* options);
void AddCudaAttention(CLI::App* app, BenchOptions* options);
void AddCudaCodec(CLI::App* app, BenchOptions* options);
void AddCudaAllReduce(CLI::App* app, BenchOptions* options);

// options_bench.cc: `nibble bench` and its commands; the command that is given sets *run.
void AddBench(CLI::App* app, BenchOptions* options, std::function<int()>* run);

}  // namespace nibble::cli
