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
  std::string model_name;  // label of every engine metric
  int64_t block_size = 0;  // labels of vllm:cache_config_info
  int64_t num_blocks = 0;
  int64_t max_model_len = 0;  // where the token-count buckets end
  bool enable_prefix_caching = false;
};

// Thread-safe. Register as the engine's observer; the engine must not outlive it.
class Metrics final : public engine::EngineObserver {
 public:
  explicit Metrics(const MetricsConfig& config);
  ~Metrics() override;

  void OnStep(const engine::StepStats& stats) override;
  void OnFinished(const engine::FinishedRequestStats& stats) override;
  // One client request was admitted with `n` choices per prompt.
  void OnAdmitted(int64_t n);
  // One HTTP answer; `handler` is the route ("none" for unknown paths). Unknown methods are counted
  // as "other": clients cannot make labels.
  void OnHttp(std::string_view handler, std::string_view method, int status, double seconds);

  // The text exposition format, with gauges set from `stats`.
  std::string Serialize(const engine::EngineStats& stats);

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace nibble::server
