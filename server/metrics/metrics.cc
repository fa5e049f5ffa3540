// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/metrics.h"

#include <map>
#include <memory>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace nibble::server {
namespace {

using Buckets = std::vector<double>;
using Labels = std::map<std::string, std::string>;

const Buckets& LatencyBuckets() {
  static const Buckets buckets = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                  30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
  return buckets;
}

const Buckets& FirstTokenBuckets() {
  static const Buckets buckets = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                  1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
  return buckets;
}

const Buckets& InterTokenBuckets() {
  static const Buckets buckets = {0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075,
                                  0.01,    0.015,  0.02,  0.025, 0.05,  0.075, 0.1,   0.15,
                                  0.2,     0.3,    0.4,   0.5,   0.75,  1,     2.5,   5,
                                  7.5,     10,     20,    40,    80};
  return buckets;
}

// 1, 2, 5, 10, 20, 50, ... up to `max`.
Buckets OneTwoFive(int64_t max) {
  Buckets buckets;
  for (int64_t decade = 1;; decade *= 10) {
    for (const int64_t digit : {1, 2, 5}) {
      if (decade * digit > max) return buckets;
      buckets.push_back(static_cast<double>(decade * digit));
    }
  }
}

Buckets PowersOfTwo(int64_t first, int64_t last) {
  Buckets buckets = {1};
  for (int64_t value = first; value <= last; value *= 2)
    buckets.push_back(static_cast<double>(value));
  return buckets;
}

// Methods are a client's word: any other than these would be a time series of its own, for ever.
std::string_view KnownMethod(std::string_view method) {
  for (const std::string_view known :
       {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}) {
    if (method == known) return known;
  }
  return "other";
}

std::string_view FinishedReason(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return "stop";
    case engine::FinishReason::kLength:
      return "length";
    case engine::FinishReason::kAbort:
      return "abort";
    case engine::FinishReason::kError:
      return "error";
  }
  return "error";
}

}  // namespace

struct Metrics::Families {
  explicit Families(const MetricsConfig& config)
      : labels{{"model_name", config.model_name}, {"engine", "0"}},
        token_buckets(OneTwoFive(config.max_model_len)) {}

  Labels With(const char* key, std::string_view value) const {
    Labels result = labels;
    result[key] = value;
    return result;
  }
  // With a value that stays.
  void AddConstant(const char* name, const char* help, const Labels& with, double value) {
    prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(with).Set(value);
  }
  prometheus::Gauge& AddGauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  }
  prometheus::Counter& AddCounter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
  }
  prometheus::Histogram& AddHistogram(const char* name, const char* help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(labels,
                                                                                     buckets);
  }

  // Before the members made by the functions above: they use these three.
  Labels labels;
  Buckets token_buckets;
  prometheus::Registry registry;

  Labels cache_labels;  // of vllm:cache_config_info, but for the number of blocks

  prometheus::Gauge& running =
      AddGauge("vllm:num_requests_running", "Sequences in the running batch.");
  prometheus::Gauge& waiting =
      AddGauge("vllm:num_requests_waiting", "Sequences waiting to be scheduled.");
  prometheus::Family<prometheus::Gauge>& waiting_by_reason =
      prometheus::BuildGauge()
          .Name("vllm:num_requests_waiting_by_reason")
          .Help("Sequences waiting for capacity, or deferred (there are none of these).")
          .Register(registry);
  prometheus::Gauge& waiting_capacity = waiting_by_reason.Add(With("reason", "capacity"));
  // Constant: whatever waits here waits for a place or for KV blocks.
  prometheus::Gauge& waiting_deferred = waiting_by_reason.Add(With("reason", "deferred"));
  prometheus::Gauge& kv_usage =
      AddGauge("vllm:kv_cache_usage_perc", "Share of KV blocks held by sequences; 1 means full.");

  prometheus::Gauge& http_connections =
      AddGauge("nibble:http_connections", "Open connections of the HTTP server.");
  prometheus::Gauge& grpc_connections =
      AddGauge("nibble:grpc_connections", "Open connections of the gRPC server.");
  prometheus::Gauge& http_buffered =
      AddGauge("nibble:http_buffered_bytes", "Held of HTTP requests that are not answered yet.");

  prometheus::Counter& prompt_tokens =
      AddCounter("vllm:prompt_tokens_total",
                 "Prompt tokens of sequences that got their first token, each prompt once.");
  prometheus::Family<prometheus::Counter>& prompt_tokens_by_source =
      prometheus::BuildCounter()
          .Name("vllm:prompt_tokens_by_source_total")
          .Help("The same by where their keys and values came from.")
          .Register(registry);
  prometheus::Counter& computed_tokens =
      prompt_tokens_by_source.Add(With("source", "local_compute"));
  prometheus::Counter& cache_hit_tokens =
      prompt_tokens_by_source.Add(With("source", "local_cache_hit"));
  prometheus::Counter& generation_tokens =
      AddCounter("vllm:generation_tokens_total", "Tokens generated.");
  prometheus::Counter& cached_tokens =
      AddCounter("vllm:prompt_tokens_cached_total",
                 "Those of vllm:prompt_tokens_total that were found in the prefix cache.");
  prometheus::Counter& preemptions =
      AddCounter("vllm:num_preemptions_total", "Sequences preempted to be recomputed.");
  prometheus::Counter& recomputed_sequences =
      AddCounter("nibble:recomputed_sequences_total",
                 "Running sequences whose keys and values were lost with a rank.");
  int64_t num_lost_sequences = 0;  // of the engine, as counted; touched by its thread alone
  prometheus::Counter& prefix_queries =
      AddCounter("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.");
  prometheus::Counter& prefix_hits =
      AddCounter("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.");

  prometheus::Histogram& iteration_tokens =
      AddHistogram("vllm:iteration_tokens_total", "Tokens computed per step, recomputed ones too.",
                   PowersOfTwo(8, 16384));
  prometheus::Histogram& step =
      AddHistogram("nibble:step_seconds", "From a step's plan to its tokens; steps may overlap.",
                   InterTokenBuckets());
  prometheus::Histogram& first_token = AddHistogram(
      "vllm:time_to_first_token_seconds", "From queued to the first token.", FirstTokenBuckets());
  prometheus::Histogram& inter_token = AddHistogram(
      "vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", InterTokenBuckets());
  prometheus::Histogram& per_output_token =
      AddHistogram("vllm:request_time_per_output_token_seconds",
                   "Mean time per token after the first, per sequence.", InterTokenBuckets());
  prometheus::Histogram& e2e = AddHistogram("vllm:e2e_request_latency_seconds",
                                            "From queued to the last token.", LatencyBuckets());
  prometheus::Histogram& queue = AddHistogram("vllm:request_queue_time_seconds",
                                              "From queued to scheduled.", LatencyBuckets());
  prometheus::Histogram& prefill = AddHistogram(
      "vllm:request_prefill_time_seconds", "From scheduled to the first token.", LatencyBuckets());
  prometheus::Histogram& decode = AddHistogram(
      "vllm:request_decode_time_seconds", "From the first to the last token.", LatencyBuckets());
  prometheus::Histogram& inference = AddHistogram(
      "vllm:request_inference_time_seconds", "From scheduled to the last token.", LatencyBuckets());
  prometheus::Histogram& request_prompt_tokens =
      AddHistogram("vllm:request_prompt_tokens", "Prompt tokens per sequence.", token_buckets);
  prometheus::Histogram& request_computed_tokens =
      AddHistogram("vllm:request_prefill_kv_computed_tokens",
                   "Prompt tokens per sequence that were not cached.", token_buckets);
  prometheus::Histogram& request_generation_tokens = AddHistogram(
      "vllm:request_generation_tokens", "Generated tokens per sequence.", token_buckets);
  prometheus::Histogram& request_max_tokens =
      AddHistogram("vllm:request_params_max_tokens", "max_tokens per sequence.", token_buckets);
  prometheus::Histogram& request_n =
      AddHistogram("vllm:request_params_n", "n per request.", {1, 2, 5, 10, 20});

  prometheus::Family<prometheus::Counter>& success = prometheus::BuildCounter()
                                                         .Name("vllm:request_success_total")
                                                         .Help("Finished sequences by reason.")
                                                         .Register(registry);
  prometheus::Family<prometheus::Counter>& http_requests = prometheus::BuildCounter()
                                                               .Name("http_requests_total")
                                                               .Help("HTTP answers.")
                                                               .Register(registry);
  prometheus::Family<prometheus::Histogram>& http_seconds =
      prometheus::BuildHistogram()
          .Name("http_request_duration_seconds")
          .Help(
              "From the arrival of the whole header to the whole answer, with the time that body "
              "and client take.")
          .Register(registry);

  prometheus::Family<prometheus::Counter>& grpc_calls =
      prometheus::BuildCounter()
          .Name("grpc_server_handled_total")
          .Help("gRPC calls that ended, by status.")
          .Register(registry);
  prometheus::Family<prometheus::Histogram>& grpc_seconds =
      prometheus::BuildHistogram()
          .Name("grpc_server_handling_seconds")
          .Help("From the start of a gRPC call to its end.")
          .Register(registry);
};

Metrics::Metrics(const MetricsConfig& config) : families_(std::make_unique<Families>(config)) {
  Families& f = *families_;
  f.cache_labels = f.labels;
  f.cache_labels["block_size"] = std::to_string(config.block_size);
  f.cache_labels["enable_prefix_caching"] = config.enable_prefix_caching ? "True" : "False";
  f.AddConstant("nibble:build_info", "Version of the server; the value is always 1.",
                f.With("version", config.version), 1);
  f.AddConstant("nibble:max_num_seqs", "Sequences that a step takes at most.", f.labels,
                static_cast<double>(config.max_num_seqs));
  f.AddConstant("nibble:max_queued_requests",
                "Sequences that may wait; requests beyond are refused (429).", f.labels,
                static_cast<double>(config.max_queued_requests));
  // Every reason exists from the start: a series that appears later breaks rate() over its first
  // increment.
  for (const auto reason : {engine::FinishReason::kStop, engine::FinishReason::kLength,
                            engine::FinishReason::kAbort, engine::FinishReason::kError}) {
    f.success.Add(f.With("finished_reason", FinishedReason(reason)));
  }
}

Metrics::~Metrics() = default;

void Metrics::SetKvBlocks(int64_t num_blocks) {
  Labels labels = families_->cache_labels;
  labels["num_gpu_blocks"] = std::to_string(num_blocks);  // vLLM's label, whatever the device
  families_->AddConstant("vllm:cache_config_info", "KV cache configuration; the value is always 1.",
                         labels, 1);
}

void Metrics::OnStep(const engine::StepStats& stats) {
  Families& f = *families_;
  const auto prompt = static_cast<double>(stats.num_prefilled_tokens);
  const auto cached = static_cast<double>(stats.num_prefilled_cached_tokens);
  f.prompt_tokens.Increment(prompt);
  f.cached_tokens.Increment(cached);
  f.cache_hit_tokens.Increment(cached);
  f.computed_tokens.Increment(prompt - cached);
  f.generation_tokens.Increment(static_cast<double>(stats.num_generated_tokens));
  f.preemptions.Increment(static_cast<double>(stats.num_preemptions));
  f.recomputed_sequences.Increment(
      static_cast<double>(stats.engine.num_lost_sequences - f.num_lost_sequences));
  f.num_lost_sequences = stats.engine.num_lost_sequences;
  f.prefix_queries.Increment(static_cast<double>(stats.prefix_cache_queries));
  f.prefix_hits.Increment(static_cast<double>(stats.prefix_cache_hits));
  const int64_t iteration_tokens = stats.num_prompt_tokens + stats.num_generated_tokens;
  if (iteration_tokens > 0) {
    f.iteration_tokens.Observe(static_cast<double>(iteration_tokens));
    f.step.Observe(stats.step_seconds);
  }
  for (const double seconds : stats.time_to_first_token_seconds) f.first_token.Observe(seconds);
  for (const double seconds : stats.inter_token_seconds) f.inter_token.Observe(seconds);
}

void Metrics::OnFinished(const engine::FinishedRequestStats& stats) {
  Families& f = *families_;
  f.success.Add(f.With("finished_reason", FinishedReason(stats.reason))).Increment();
  f.e2e.Observe(stats.e2e_seconds);
  f.queue.Observe(stats.queue_seconds);
  f.prefill.Observe(stats.prefill_seconds);
  f.decode.Observe(stats.decode_seconds);
  f.inference.Observe(stats.inference_seconds);
  f.request_prompt_tokens.Observe(static_cast<double>(stats.num_prompt_tokens));
  f.request_computed_tokens.Observe(
      static_cast<double>(stats.num_prompt_tokens - stats.num_cached_tokens));
  f.request_generation_tokens.Observe(static_cast<double>(stats.num_generated_tokens));
  f.request_max_tokens.Observe(static_cast<double>(stats.max_tokens));
  if (stats.num_generated_tokens > 1) {
    f.per_output_token.Observe(stats.decode_seconds /
                               static_cast<double>(stats.num_generated_tokens - 1));
  }
}

void Metrics::OnAdmitted(int64_t n) { families_->request_n.Observe(static_cast<double>(n)); }

void Metrics::OnHttp(std::string_view handler, std::string_view method, int status,
                     double seconds) {
  const std::string handler_label(handler);
  const std::string method_label(KnownMethod(method));
  families_->http_requests
      .Add({{"handler", handler_label},
            {"method", method_label},
            {"status", std::to_string(status)}})
      .Increment();
  families_->http_seconds
      .Add({{"handler", handler_label}, {"method", method_label}}, LatencyBuckets())
      .Observe(seconds);
}

void Metrics::OnGrpc(std::string_view method, std::string_view code, double seconds) {
  Labels labels = {{"grpc_service", "nibble.v1.Nibble"}, {"grpc_method", std::string(method)}};
  families_->grpc_seconds.Add(labels, LatencyBuckets()).Observe(seconds);
  labels["grpc_code"] = code;
  families_->grpc_calls.Add(labels).Increment();
}

std::string Metrics::Serialize(const engine::EngineStats& stats, const ScrapeState& state) {
  Families& f = *families_;
  f.running.Set(static_cast<double>(stats.num_running));
  f.waiting.Set(static_cast<double>(stats.num_waiting));
  f.waiting_capacity.Set(static_cast<double>(stats.num_waiting));
  f.waiting_deferred.Set(0);
  f.kv_usage.Set(stats.kv_blocks_total == 0 ? 0.0
                                            : static_cast<double>(stats.kv_blocks_used) /
                                                  static_cast<double>(stats.kv_blocks_total));
  f.http_connections.Set(static_cast<double>(state.num_http_connections));
  f.grpc_connections.Set(static_cast<double>(state.num_grpc_connections));
  f.http_buffered.Set(static_cast<double>(state.http_buffered_bytes));
  return prometheus::TextSerializer().Serialize(f.registry.Collect());
}

}  // namespace nibble::server
