// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Prometheus metrics under vLLM's names, labels and buckets, so that existing dashboards and
// inference gateways work unchanged. Inter-token latency has finer buckets below 10 ms than vLLM's;
// every bucket bound of vLLM's is kept. Left out is what has nothing to count here (lora_*,
// spec_decode_*, external_prefix_cache_*, engine_sleep_state; source "external_kv_transfer") and
// request_max_num_generation_tokens, since the engine does not know which sequences are choices of
// one request.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "engine/engine.h"

namespace nibble::server {

struct MetricsConfig {
  std::string model_name;     // label of every engine metric
  int64_t block_size = 0;     // labels of vllm:cache_config_info
  int64_t max_model_len = 0;  // where the token-count buckets end
  bool enable_prefix_caching = false;
  std::string version;  // label of nibble:build_info
  int64_t max_num_seqs = 0;
  int64_t max_queued_requests = 0;
};

// What the engine does not know, at the moment of a scrape.
struct ScrapeState {
  int64_t num_http_connections = 0;
  int64_t http_buffered_bytes = 0;
  int64_t num_grpc_connections = 0;
};

// Thread-safe. Register as the engine's observer; the engine must not outlive it.
class Metrics final : public engine::EngineObserver {
 public:
  explicit Metrics(const MetricsConfig& config);
  ~Metrics() override;

  void OnStep(const engine::StepStats& stats) override;
  void OnFinished(const engine::FinishedRequestStats& stats) override;
  // What labels of vllm:cache_config_info tell; once, when it is known.
  void SetKvBlocks(int64_t num_blocks);
  // One client request was admitted with `n` choices per prompt.
  void OnAdmitted(int64_t n);
  // One HTTP answer; `handler` is the route ("none" for unknown paths). Unknown methods are counted
  // as "other": clients cannot make labels.
  void OnHttp(std::string_view handler, std::string_view method, int status, double seconds);

  // One gRPC call of nibble.v1.Nibble that ended: "Chat", "OK".
  void OnGrpc(std::string_view method, std::string_view code, double seconds);

  // The text exposition format, with gauges set from both.
  std::string Serialize(const engine::EngineStats& stats, const ScrapeState& state = {});

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace nibble::server
