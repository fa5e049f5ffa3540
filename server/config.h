// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Everything `nibble serve` can be told, in one plain value: parsed once by server/cli/options.cc,
// checked by Validate(), passed on by const reference. Names are those of `vllm serve` where it has
// the option.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "server/guard_options.h"
#include "server/lifecycle_options.h"

namespace nibble::server {

// The driver and captured graphs take the rest.
inline constexpr double kMaxGpuMemoryUtilization = 0.98;

// Which model, and how its arithmetic is done: shared by serve, eval and inspect.
struct ModelOptions {
  std::string model;            // a Hugging Face model directory
  std::string device = "auto";  // auto, cpu, cuda
  std::string dtype = "auto";   // auto (the checkpoint's), float32, bfloat16, float16
  // auto (that of the weights), float32, bfloat16, float16, int8 (a scale per head and token)
  std::string kv_cache_dtype = "auto";
  std::string quantization = "none";       // none (as the checkpoint is stored), w4a8, w8a8, w4a16
  std::string head_quantization = "auto";  // auto, none, int8, int4
  // Of --device cuda; others than these are refused with --device cpu:
  double gpu_memory_utilization = 0.9;     // share of a device's memory that its rank takes
  bool enforce_eager = false;              // no captured graphs
  std::string attention_backend = "auto";  // auto, nibble, flashinfer
  // A row's bits are the same in every batch; on CPUs they always are. Of --device cuda: no
  // libraries' kernels.
  bool batch_invariant = false;
  int threads = 0;  // compute threads; 0: every CPU this process may run on
  // Where they run: auto (bound one to a CPU when they are as many as the process has), none, or a
  // CPU list with one CPU for each.
  std::string cpu_binding = "auto";

  void Validate(std::vector<std::string>* violations) const;
  // The options of --device cuda that are not at their defaults.
  std::vector<std::string> DeviceOptions() const;
};

// How the ranks' sums travel: shared by serve, eval and the benches. server/cli/all_reduce_setup.h
// turns it into what comm/ takes.
struct AllReduceFlags {
  // auto, none, float32, bf16, int8, int6, int5, int4, int3, int2
  std::string all_reduce = "auto";
  int group_size = 128;        // values that share a scale: 32, 64, 128
  std::string scale = "bf16";  // bf16, log2
  bool spikes = false;
  bool rotation =
      true;  // costs no bytes and halves what int4 to int6 lose (engine/model/README.md)

  friend bool operator==(const AllReduceFlags&, const AllReduceFlags&) = default;
  void Validate(std::vector<std::string>* violations) const;
};

// Of a model with experts. server/cli/expert_setup.h says what becomes of them.
struct ExpertOptions {
  bool enable_expert_parallel =
      false;                         // whole experts: expert_parallel_size = tensor_parallel_size
  int expert_parallel_size = 0;      // parts into which a layer's experts are cut; 0: chosen
  bool check_routing = false;        // ranks compare where tokens go, in every step
  std::string expert_load;           // file of engine/moe/expert_load.h that decides the layout
  int num_redundant_experts = 0;     // slots for copies, beyond one for each expert
  std::string record_expert_load;    // file that is written
  int64_t max_expert_series = 2048;  // more pairs of layer and expert have no counters in /metrics

  // Names of the options that are given, of those that a dense model has no use for.
  std::vector<std::string> Given() const;
  void Validate(int tensor_parallel_size, std::vector<std::string>* violations) const;
};

// Ranks, and the hosts they are on.
struct ParallelOptions {
  int tensor_parallel_size = 1;    // ranks that share a layer
  int pipeline_parallel_size = 1;  // stages that share the layers, each of as many ranks
  // One rank: auto (mp with a CUDA device), mp (a process of its own, so that what ends it ends no
  // client's connection), uni (in the server's process). More: auto or mp, which are the same.
  std::string distributed_executor_backend = "auto";
  int rank_threads = 0;  // of each rank; 0: CPUs of the process / ranks of this host
  int nnodes = 1;        // hosts, each with world_size() / nnodes ranks
  int node_rank = 0;     // which one this is; 0 is the one that serves
  std::string master_addr;
  int master_port = 29500;
  std::string node_addr;  // of this host; empty: node 0 master_addr, others what routes to it
  std::string cluster_secret_file;
  std::string cluster_secret;  // no option: server/cli takes it from the environment
  std::string cluster_tls_ca;  // PEM files: all three, or none
  std::string cluster_tls_cert;
  std::string cluster_tls_key;
  std::string cluster_tls_server_name;  // of node 0's certificate; empty: master_addr
  AllReduceFlags all_reduce;
  bool all_reduce_measure = false;  // anew, not what an earlier start kept
  int rank_timeout_seconds = 5;     // silence after which a rank counts as lost
  int group_timeout_seconds = 60;   // how long requests wait for lost ranks
  ExpertOptions experts;

  // Ranks of all stages. Number w is rank w % tensor_parallel_size of stage w /
  // tensor_parallel_size; node n has numbers n * ranks_per_node() and on.
  int world_size() const;
  int ranks_per_node() const { return world_size() / nnodes; }
  void Validate(std::vector<std::string>* violations) const;
};

struct ServeConfig {
  ModelOptions model;
  ParallelOptions parallel;
  std::string host = "127.0.0.1";
  int port = 8000;                        // 0: any free port
  int grpc_port = 8001;                   // 0: any free port, -1: no gRPC
  std::string served_model_name;          // empty: the directory's name
  std::string chat_template;              // file with a Jinja template; empty: the model's own
  int64_t max_model_len = 0;              // tokens of prompt and answer; 0: the model's maximum
  int64_t max_num_seqs = 64;              // sequences per step
  int64_t max_num_batched_tokens = 2048;  // token budget of a step
  int64_t max_queued_requests = 1024;     // waiting sequences
  int64_t block_size = 16;                // tokens per KV block
  int64_t kv_cache_memory_bytes =
      0;  // 0: what max_num_seqs full sequences need, at most a quarter of free memory
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;
  int64_t seed = 0;  // seeds of requests that bring none are drawn from this
  int http_threads = 2;
  int64_t max_body_bytes = int64_t{16} << 20;
  bool disable_web = false;        // no page at /
  bool disable_log_stats = false;  // no line every 10 s while there is work
  GuardOptions guards;
  LifecycleOptions lifecycle;

  // All violations at once, each naming option, value and limit.
  absl::Status Validate() const;
};

}  // namespace nibble::server
