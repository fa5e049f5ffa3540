// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Options of nibble serve, and of the ranks that it starts.
#include <string>

#include "CLI/CLI.hpp"
#include "server/cli/byte_size.h"
#include "server/cli/options.h"

namespace nibble::cli {
namespace {

void AddExpertOptions(CLI::App* app, server::ExpertOptions* options) {
  AddExpertParallelOptions(app, options);
  app->add_option("--expert-load", options->expert_load,
                  "file of --record-expert-load: decides which experts are where, so that all "
                  "ranks have as much to do");
  app->add_option("--num-redundant-experts", options->num_redundant_experts,
                  "with --expert-load, copies of the experts that many tokens go to")
      ->capture_default_str();
  app->add_option("--record-expert-load", options->record_expert_load,
                  "file for the tokens of each expert since the start: written every minute and "
                  "at the end, when ranks' last second may be missing. Node 0's; others write none")
      ->check([](const std::string& path) { return path.empty() ? "want a file, got ''" : ""; });
  app->add_option("--max-expert-series", options->max_expert_series,
                  "/metrics, which node 0 has, counts tokens by layer and expert for models with "
                  "at most so many pairs of these")
      ->capture_default_str();
}

void AddParallelOptions(CLI::App* app, server::ParallelOptions* options) {
  app->add_option("--tensor-parallel-size", options->tensor_parallel_size,
                  "ranks that share every layer, each a process of its own (also -tp)")
      ->capture_default_str();
  AddPipelineOption(app, &options->pipeline_parallel_size);
  AddExpertOptions(app, &options->experts);
  app->add_option("--distributed-executor-backend", options->distributed_executor_backend,
                  "where one rank runs: mp (a process of its own: should it end, for instance with "
                  "its device, streams go on with the next), uni (in the server), auto (mp on "
                  "CUDA, else uni). Several ranks are always processes")
      ->capture_default_str();
  app->add_option("--rank-threads", options->rank_threads,
                  "compute threads of each rank (0: this process's CPUs / ranks of this host)")
      ->capture_default_str();
  app->add_option("--nnodes", options->nnodes, "hosts that the ranks are on, as many on each")
      ->capture_default_str();
  app->add_option(
         "--node-rank", options->node_rank,
         "which of them this is; 0 serves HTTP and gRPC, the others join it: what is said of "
         "ports, keys, TLS, limits, health and logs of requests is node 0's")
      ->capture_default_str();
  app->add_option("--master-addr", options->master_addr, "address of node 0");
  app->add_option("--master-port", options->master_port, "port at which nodes join node 0")
      ->capture_default_str();
  app->add_option("--node-addr", options->node_addr,
                  "address of this host for the other nodes (default: on node 0 --master-addr, "
                  "elsewhere the one from which it is reached)");
  app->add_option("--cluster-secret-file", options->cluster_secret_file,
                  "file with the secret that all nodes share (or NIBBLE_CLUSTER_SECRET in the "
                  "environment)");
  app->add_option("--cluster-tls-ca", options->cluster_tls_ca,
                  "PEM file: who signed the nodes' certificates");
  app->add_option("--cluster-tls-cert", options->cluster_tls_cert,
                  "PEM file: this node's certificate");
  app->add_option("--cluster-tls-key", options->cluster_tls_key, "PEM file: its key");
  app->add_option("--cluster-tls-server-name", options->cluster_tls_server_name,
                  "name in node 0's certificate that the other nodes look for (default: "
                  "--master-addr)");
  AddAllReduceOptions(app, &options->all_reduce, true);
  app->add_flag("--all-reduce-measure", options->all_reduce_measure,
                "measure for --all-reduce auto anew, whatever an earlier start has kept");
  app->add_option("--rank-timeout", options->rank_timeout_seconds,
                  "seconds of silence after which a rank counts as lost")
      ->capture_default_str();
  app->add_option(
         "--group-timeout", options->group_timeout_seconds,
         "seconds that requests wait for lost ranks; then they fail with 503 / UNAVAILABLE")
      ->capture_default_str();
}

}  // namespace

void AddServe(CLI::App* app, server::ServeConfig* config) {
  AddModelOptions(app, &config->model);
  AddDeviceMemoryOption(app, &config->model);
  AddParallelOptions(app, &config->parallel);
  app->add_option("--host", config->host, "address to listen on")->capture_default_str();
  app->add_option("--port", config->port, "HTTP port (0: any free port)")->capture_default_str();
  app->add_option("--grpc-port", config->grpc_port, "gRPC port (0: any free port, -1: no gRPC)")
      ->capture_default_str();
  app->add_option("--served-model-name", config->served_model_name,
                  "name clients use (default: directory name)");
  app->add_option("--chat-template", config->chat_template,
                  "file with a Jinja chat template (default: the model's)");
  app->add_option("--max-model-len", config->max_model_len,
                  "tokens of prompt and answer (0: the model's maximum)")
      ->capture_default_str();
  app->add_option("--max-num-seqs", config->max_num_seqs, "sequences per step")
      ->capture_default_str();
  app->add_option("--max-num-batched-tokens", config->max_num_batched_tokens,
                  "token budget of a step")
      ->capture_default_str();
  app->add_option("--max-queued-requests", config->max_queued_requests,
                  "waiting sequences; more are refused (429)")
      ->capture_default_str();
  app->add_option("--block-size", config->block_size, "tokens per KV cache block")
      ->capture_default_str();
  app->add_option(
         "--kv-cache-memory-bytes", config->kv_cache_memory_bytes,
         "KV cache size on each host, or device (0: for max-num-seqs full sequences, at most a "
         "quarter of free memory; of a device what --gpu-memory-utilization leaves): bytes, or "
         "with a suffix, 4GiB; also KiB, MiB, K, M, G of 1024 and k, m, g of 1000")
      ->transform(CLI::Validator(
          [](std::string& text) {
            const absl::StatusOr<int64_t> bytes = ParseByteSize(text);
            if (!bytes.ok()) return std::string(bytes.status().message());
            text = std::to_string(*bytes);
            return std::string();
          },
          ""))
      ->capture_default_str();
  app->add_flag("--enable-prefix-caching,!--no-enable-prefix-caching",
                config->enable_prefix_caching,
                "reuse KV blocks of equal prompt beginnings (default: on)");
  app->add_flag("--enable-chunked-prefill,!--no-enable-chunked-prefill",
                config->enable_chunked_prefill,
                "compute long prompts in pieces between decode steps (default: on)");
  app->add_option("--seed", config->seed, "where seeds of requests without one come from")
      ->capture_default_str();
  app->add_option("--http-threads", config->http_threads, "HTTP io threads")->capture_default_str();
  app->add_option("--max-body-bytes", config->max_body_bytes, "largest HTTP body and gRPC message")
      ->capture_default_str();
  app->add_flag("--disable-web", config->disable_web,
                "no page at / (a chat, and a live view of the server)");
  AddGuardOptions(app, &config->guards);
  AddLifecycleOptions(app, &config->lifecycle);
  app->add_flag("--disable-log-stats", config->disable_log_stats,
                "no line in the log every 10 s while requests run or wait");
}

void AddRank(CLI::App* app, RankOptions* options) {
  AddModelOptions(app, &options->model);
  AddDeviceMemoryOption(app, &options->model);
  app->add_option("--tensor-parallel-size", options->tensor_parallel_size, "ranks of a stage")
      ->required();
  app->add_option("--pipeline-parallel-size", options->pipeline_parallel_size, "stages")
      ->required();
  app->add_option("--expert-parallel-size", options->expert_parallel_size,
                  "parts into which a layer's experts are cut")
      ->required();
  app->add_option("--expert-layout", options->expert_layout,
                  "JSON file: which expert is in which slot");
  app->add_flag("--check-routing", options->check_routing, "compare where tokens go");
  app->add_option("--rank", options->rank, "which of them this is")->required();
  app->add_option("--device-index", options->device_index, "of --device cuda, among this host's")
      ->required();
  app->add_option("--control-fd", options->control_fd, "connected socket to the server")
      ->required();
  app->add_option("--block-size", options->block_size, "tokens per KV cache block")->required();
  app->add_option("--max-num-batched-tokens", options->max_num_batched_tokens,
                  "token budget of a step")
      ->required();
  app->add_option("--max-num-seqs", options->max_num_seqs, "sequences per step")->required();
  app->add_option("--max-model-len", options->max_model_len, "tokens of prompt and answer")
      ->required();
  app->add_option("--host-ranks", options->host_ranks, "that share this host's memory")->required();
  app->add_option("--kv-cache-memory-bytes", options->kv_cache_memory_bytes,
                  "of this host; 0: not given")
      ->required();
  app->add_option("--min-batched-tokens", options->min_batched_tokens,
                  "that --max-num-batched-tokens may be lowered to")
      ->required();
  app->add_option("--model-fingerprint", options->model_fingerprint,
                  "of the model that the server was started with")
      ->required();
}

}  // namespace nibble::cli
