// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/serving_stack.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <utility>

#include "fmt/ranges.h"

#include "base/json.h"
#include "base/log.h"
#include "comm/cluster/grpc_log.h"
#include "comm/ranks/rank_hub.h"
#include "engine/exec/rank_group.h"
#include "server/auth/http_guard.h"
#include "server/cli/commands.h"
#include "server/cli/model_setup.h"
#include "server/cli/parallel_setup.h"
#include "server/cli/replace_file.h"
#include "server/cli/start_error.h"
#include "server/cli/version.h"
#include "server/health/health_metrics.h"
#include "server/health/health_routes.h"
#include "server/metrics/guard_metrics.h"
#include "server/metrics/process_metrics.h"
#include "server/web/web.h"

namespace nibble::cli {
namespace {

constexpr int64_t kHealthConnections = 64;

std::string UrlHost(const std::string& host) {
  return host.find(':') == std::string::npos || host.front() == '[' ? host
                                                                    : fmt::format("[{}]", host);
}

// One at which a client of this host reaches what listens at `host`.
std::string ReachableHost(const std::string& host) {
  if (host == "0.0.0.0") return "127.0.0.1";
  return host == "::" || host == "[::]" ? "[::1]" : UrlHost(host);
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || host.rfind("127.", 0) == 0;
}

// "none, weights bfloat16" is a list of properties and no sentence.
std::string ArithmeticName(const std::string& quantization) {
  constexpr std::string_view kNone = "none, ";
  if (quantization.rfind(kNone, 0) != 0) return quantization;
  return "not quantized, " + quantization.substr(kNone.size());
}

// --max-connections, but with two front ends each half of the files that this process may open, so
// that neither keeps the other from accepting.
int64_t ConnectionsOfEach(const server::ServeConfig& config) {
  const int64_t wanted = config.guards.max_connections;
  rlimit files = {};
  if (config.grpc_port < 0 || ::getrlimit(RLIMIT_NOFILE, &files) != 0) return wanted;
  constexpr rlim_t kReserve = 128;  // of the rest of the process, and connections that are refused
  const rlim_t half = (std::max(files.rlim_max, kReserve + 2) - kReserve) / 2;
  return static_cast<int64_t>(std::min(half, static_cast<rlim_t>(wanted)));
}

// Open files that clients of the HTTP port are not to take from the rest of the process.
int64_t FilesOfOthers(const server::ServeConfig& config) {
  constexpr int64_t kEachRank = 16;
  int64_t num_files = kEachRank * config.parallel.world_size();
  if (config.grpc_port >= 0) num_files += ConnectionsOfEach(config);
  // Twice: there are as many again that are told that there are too many.
  if (config.lifecycle.health_port >= 0) num_files += 2 * kHealthConnections;
  return num_files;
}

// An engine is stopped between two steps; one whose step never ends would hold the process, its
// ports and its ranks until somebody kills it. All that comes after it is watched as well; what is
// returned is to be set once the engine has stopped. The time is slept in slices: of a pause of the
// whole process (a debugger, a moved virtual machine) only one counts.
std::shared_ptr<std::atomic<bool>> EndProcessIfItHangs() {
  constexpr std::chrono::seconds kStopTime(15);
  constexpr std::chrono::milliseconds kSlice(100);
  auto engine_has_stopped = std::make_shared<std::atomic<bool>>(false);
  std::thread([kStopTime, kSlice, engine_has_stopped] {
    for (auto slept = kSlice * 0; slept < kStopTime; slept += kSlice)
      std::this_thread::sleep_for(kSlice);
    PrintMessage(
        fmt::format("nibble: error: {} within {} s{}; ending at once\n",
                    engine_has_stopped->load()
                        ? "the engine has stopped, but its connections and ranks have not ended"
                        : "the engine has not stopped",
                    kStopTime.count(), engine_has_stopped->load() ? "" : ": its step hangs"));
    std::_Exit(1);
  }).detach();
  return engine_has_stopped;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServingStack>> ServingStack::Start(const server::ServeConfig& config,
                                                                  AccessSetup access) {
  NIBBLE_RETURN_IF_ERROR(config.Validate());
  std::unique_ptr<ServingStack> stack(new ServingStack(config, std::move(access)));
  NIBBLE_RETURN_IF_ERROR(stack->CheckFirst());
  NIBBLE_RETURN_IF_ERROR(stack->StartHttp());
  NIBBLE_RETURN_IF_ERROR(stack->StartHealthPort());
  NIBBLE_RETURN_IF_ERROR(stack->StartGrpc());
  log::Info("listening: {}; requests are refused until the model is loaded", stack->Addresses());
  stack->WarnOfOpenDoors();
  NIBBLE_RETURN_IF_ERROR(stack->StartModel());
  NIBBLE_RETURN_IF_ERROR(stack->StartEngine());
  NIBBLE_RETURN_IF_ERROR(stack->StartService());
  stack->BeginServing();
  return stack;
}

ServingStack::ServingStack(const server::ServeConfig& config, AccessSetup access)
    : config_(config),
      access_(std::move(access)),
      health_({.step_timeout = std::chrono::seconds(config.lifecycle.step_timeout_seconds),
               .self_repair = RanksAreProcesses(config) ? engine::RankPatience().compute
                                                        : std::chrono::milliseconds(0)}) {
  if (config_.served_model_name.empty())
    config_.served_model_name = ModelNameFromPath(config_.model.model);
}

// What is found out in a moment, before ports are open and minutes of loading.
absl::Status ServingStack::CheckFirst() {
  if (const std::string& path = config_.parallel.experts.record_expert_load; !path.empty()) {
    const absl::Status writable = CheckReplaceable(path);
    if (!writable.ok()) return Annotate(writable, "--record-expert-load");
  }
  NIBBLE_RETURN_IF_ERROR(CheckModelFiles(config_.model.model));
  NIBBLE_ASSIGN_OR_RETURN(chat_, SetUpChat(config_));
  NIBBLE_RETURN_IF_ERROR(CheckCluster(config_.parallel));
  NIBBLE_RETURN_IF_ERROR(engine::LoadGenerationConfig(config_.model.model).status());
  NIBBLE_ASSIGN_OR_RETURN(const engine::ModelConfig model,
                          engine::LoadModelConfig(config_.model.model));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t max_model_len,
                          ChooseMaxModelLen(config_, model.max_position_embeddings));
  metrics_ = std::make_unique<server::Metrics>(
      server::MetricsConfig{.model_name = config_.served_model_name,
                            .block_size = config_.block_size,
                            .max_model_len = max_model_len,
                            .enable_prefix_caching = config_.enable_prefix_caching,
                            .version = kVersion,
                            .max_num_seqs = config_.max_num_seqs,
                            .max_queued_requests = config_.max_queued_requests});
  if (!RanksAreProcesses(config_)) return absl::OkStatus();
  std::vector<std::string> reasons;
  for (uint32_t reason = 0; reason <= comm::kLastLossReason; ++reason)
    reasons.emplace_back(ToString(static_cast<comm::LossReason>(reason)));
  rank_metrics_ = std::make_unique<server::RankMetrics>(config_.served_model_name,
                                                        NodeOfRank(config_.parallel), reasons);
  return absl::OkStatus();
}

absl::Status ServingStack::StartModel() {
  const StartWatch watch = {
      .on_part = [this](std::string_view what) { health_.SetLoading(what); },
      .on_progress = [this](int64_t done, int64_t total) { health_.SetProgress(done, total); }};
  if (rank_metrics_ == nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(backend_, StartLocalModel(config_, watch));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(backend_, StartRanks(config_, rank_metrics_.get(), watch));
  }
  metrics_->SetKvBlocks(backend_.kv.num_blocks);
  health_.SetLoading("starting the engine");
  return absl::OkStatus();
}

absl::Status ServingStack::StartEngine() {
  NIBBLE_ASSIGN_OR_RETURN(engine::GenerationConfig generation,
                          engine::LoadGenerationConfig(config_.model.model));
  engine::EngineConfig engine_config;
  engine_config.max_num_seqs = config_.max_num_seqs;
  engine_config.max_num_batched_tokens = config_.max_num_batched_tokens;
  engine_config.max_queued_requests = config_.max_queued_requests;
  engine_config.enable_chunked_prefill = config_.enable_chunked_prefill;
  engine_config.enable_prefix_caching = config_.enable_prefix_caching;
  engine_config.group_timeout_ns = int64_t{config_.parallel.group_timeout_seconds} * 1'000'000'000;
  engine_config.eos_token_ids =
      generation.eos_token_ids.empty() ? backend_.model.eos_token_ids : generation.eos_token_ids;
  engine_config.seed = static_cast<uint64_t>(config_.seed);
  engine::Executor* const executor = backend_.executor.get();
  engine::EngineObserver* observer = metrics_.get();
  if (!config_.disable_log_stats) {
    work_counter_ = std::make_unique<server::WorkCounter>(observer);
    observer = work_counter_.get();
  }
  NIBBLE_ASSIGN_OR_RETURN(engine_,
                          engine::Engine::Create(engine_config, std::move(backend_.executor),
                                                 backend_.tokenizer.get(), observer));
  max_model_len_ = engine_->config().sampling_limits.max_model_len;  // what is enforced
  if (!backend_.model.moe.has_value()) return absl::OkStatus();
  return WatchExperts(executor);
}

absl::Status ServingStack::WatchExperts(engine::Executor* executor) {
  const engine::ModelConfig& model = backend_.model;
  const server::ExpertOptions& options = config_.parallel.experts;
  expert_load_ = [executor] { return executor->expert_load(); };
  expert_metrics_ = std::make_unique<server::ExpertMetrics>(server::ExpertMetricsConfig{
      .model_name = config_.served_model_name,
      .is_moe_layer = model.moe->is_moe_layer,
      .layout = backend_.experts.layout != nullptr
                    ? *backend_.experts.layout
                    : engine::ExpertLayout::Uniform(model.num_layers, model.moe->num_experts),
      .num_expert_ranks = backend_.experts.expert_size,
      .max_series = options.max_expert_series});
  if (!expert_metrics_->has_counters()) {
    log::Info(
        "/metrics has no counters of {} layers x {} experts; --max-expert-series raises the limit "
        "({})",
        model.num_layers, model.moe->num_experts, options.max_expert_series);
  }
  if (options.record_expert_load.empty()) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(recorder_,
                          ExpertRecorder::Start(options.record_expert_load, expert_load_));
  return absl::OkStatus();
}

absl::Status ServingStack::StartService() {
  server::GenerationService::Parts parts;
  parts.model = {.name = config_.served_model_name,
                 .created_unix_seconds = static_cast<int64_t>(std::time(nullptr)),
                 .max_model_len = max_model_len_,
                 .vocab_size = backend_.model.vocab_size};
  parts.engine = engine_.get();
  parts.tokenizer = backend_.tokenizer.get();
  NIBBLE_ASSIGN_OR_RETURN(parts.defaults, engine::LoadGenerationConfig(config_.model.model));
  parts.template_variables = std::move(chat_.template_variables);
  parts.chat_template = std::move(chat_.chat_template);
  parts.request_timeout =
      std::chrono::nanoseconds(std::llround(config_.guards.request_timeout_seconds * 1e9));
  parts.trace_texts = access_.log != nullptr && access_.log->with_texts();
  parts.on_admitted = [metrics = metrics_.get()](int64_t n) { metrics->OnAdmitted(n); };
  service_ = std::make_unique<server::GenerationService>(std::move(parts));
  return absl::OkStatus();
}

absl::Status ServingStack::StartHttp() {
  NIBBLE_ASSIGN_OR_RETURN(
      http_,
      server::HttpServer::Create({.host = config_.host,
                                  .port = config_.port,
                                  .num_threads = config_.http_threads,
                                  .max_body_bytes = config_.max_body_bytes,
                                  .max_header_bytes = config_.guards.max_header_bytes,
                                  .max_connections = ConnectionsOfEach(config_),
                                  .reserved_files = FilesOfOthers(config_),
                                  .read_timeout_seconds = config_.guards.http_read_timeout_seconds,
                                  .tls = access_.tls}));
  if (access_.keys != nullptr) http_->SetGuard(server::MakeKeyGuard(access_.keys));
  server::RegisterHealthRoutes(http_.get(), &health_);
  server::OpenAiConfig api_config;
  api_config.model_name = config_.served_model_name;
  api_config.version = kVersion;
  api_config.system_fingerprint = fmt::format("nibble-{}", kVersion);
  api_config.metrics = [this] { return MetricsText(); };
  api_ = std::make_unique<server::OpenAiApi>(&gate_, std::move(api_config));
  api_->Register(http_.get());
  if (!config_.disable_web) server::RegisterWeb(http_.get());
  http_->SetObserver([this](const server::HttpOutcome& outcome) {
    metrics_->OnHttp(outcome.route, outcome.method, outcome.status, outcome.seconds);
    LogHttp(outcome, access_.log.get());
  });
  if (const absl::Status started = http_->Start(); !started.ok()) {
    return CannotListen("--port", config_.host, config_.port, started);
  }
  std::vector<std::string> routes = http_->Routes();
  constexpr std::string_view kPage = "GET /web/";  // a route for each of the page's files
  const auto is_of_page = [&](const std::string& route) { return route.rfind(kPage, 0) == 0; };
  if (std::erase_if(routes, is_of_page) > 0) routes.push_back(std::string(kPage) + "*");
  log::Info("HTTP routes: {}", fmt::format("{}", fmt::join(routes, ", ")));
  return absl::OkStatus();
}

// A replica that cannot serve yet must not look idle to whoever picks the least busy one: the
// engine's gauges are there once it is.
std::string ServingStack::MetricsText() {
  std::string text = server::HealthMetrics(health_.Report(), config_.served_model_name);
  text += server::ProcessMetrics();
  text += server::GuardMetrics(StateOf(access_), config_.served_model_name);
  if (rank_metrics_ != nullptr) text += rank_metrics_->Serialize();
  if (!is_loaded_.load(std::memory_order_acquire)) return text;
  text += metrics_->Serialize(
      engine_->Stats(), {.num_http_connections = http_->num_connections(),
                         .http_buffered_bytes = http_->buffered_bytes(),
                         .num_grpc_connections = grpc_ == nullptr ? 0 : grpc_->num_connections()});
  if (expert_metrics_ != nullptr) text += expert_metrics_->Serialize(expert_load_());
  return text;
}

absl::Status ServingStack::StartHealthPort() {
  if (config_.lifecycle.health_port < 0) {
    if (access_.tls != nullptr &&
        access_.tls->options().clients == server::ClientCertificates::kRequired) {
      log::Warning(
          "--ssl-cert-reqs required without --health-port: probes that show no certificate cannot "
          "ask for this server's health");
    }
    return absl::OkStatus();
  }
  // For a few probes, each of some hundred bytes.
  NIBBLE_ASSIGN_OR_RETURN(health_port_,
                          server::HttpServer::Create({.host = config_.host,
                                                      .port = config_.lifecycle.health_port,
                                                      .num_threads = 1,
                                                      .max_body_bytes = 1024,
                                                      .max_header_bytes = 8192,
                                                      .max_connections = kHealthConnections,
                                                      .read_timeout_seconds = 20}));
  server::RegisterHealthRoutes(health_port_.get(), &health_);
  const absl::Status started = health_port_->Start();
  if (started.ok()) return absl::OkStatus();
  return CannotListen("--health-port", config_.host, config_.lifecycle.health_port, started);
}

absl::Status ServingStack::StartGrpc() {
  if (config_.grpc_port < 0) return absl::OkStatus();
  server::GrpcServerConfig grpc_config;
  grpc_config.host = config_.host;
  grpc_config.port = config_.grpc_port;
  grpc_config.max_receive_message_bytes = static_cast<int>(config_.max_body_bytes);
  grpc_config.max_metadata_bytes = static_cast<int>(config_.guards.max_header_bytes);
  grpc_config.max_connections = ConnectionsOfEach(config_);
  grpc_config.tls = access_.tls;
  grpc_config.api_keys = access_.keys;
  grpc_config.request_log = access_.log;
  grpc_config.observer = [this](std::string_view method, std::string_view code, double seconds) {
    metrics_->OnGrpc(method, code, seconds);
  };
  comm::LimitGrpcLog();
  auto started = server::GrpcServer::Start(grpc_config, &gate_,
                                           [this] { return health_.Report().is_ready(); });
  if (absl::IsUnavailable(started.status())) {
    return CannotListen("--grpc-port", config_.host, config_.grpc_port, started.status());
  }
  NIBBLE_ASSIGN_OR_RETURN(grpc_, std::move(started));
  return absl::OkStatus();
}

void ServingStack::BeginServing() {
  is_loaded_.store(true, std::memory_order_release);
  health_.Watch(engine_.get());
  gate_.Open(service_.get());
  health_log_ = std::make_unique<server::HealthLog>(&health_);
  if (work_counter_ == nullptr) return;
  stats_log_ = std::make_unique<server::StatsLog>(
      work_counter_.get(), [engine = engine_.get()] { return engine->Stats(); });
}

std::string ServingStack::Addresses() const {
  const std::string host = UrlHost(config_.host);
  std::string text =
      fmt::format("{}://{}:{}", access_.tls == nullptr ? "http" : "https", host, http_->port());
  if (grpc_ != nullptr) text += fmt::format(", gRPC {}:{}", host, grpc_->port());
  if (health_port_ != nullptr)
    text += fmt::format(", health http://{}:{}", host, health_port_->port());
  return text;
}

void ServingStack::WarnOfOpenDoors() const {
  const bool asks = access_.keys != nullptr || config_.guards.ssl_cert_reqs == "required";
  if (asks || IsLoopback(config_.host)) return;
  log::Warning(
      "--host {}: whoever reaches this host may use the model, as nothing asks for a key "
      "(--api-key-file FILE, or NIBBLE_API_KEY in the environment)",
      config_.host);
}

std::string ServingStack::Banner() const {
  const std::string host = UrlHost(config_.host);
  const char* const scheme = access_.tls == nullptr ? "http" : "https";
  const std::string url = fmt::format("{}://{}:{}", scheme, host, http_->port());
  const std::string active =
      !backend_.model.moe.has_value()
          ? ""
          : fmt::format(", {} per token", HumanCount(backend_.model.num_active_parameters()));
  std::string banner = fmt::format(
      "nibble {} is ready after {:.1f} s\n"
      "  model      {} ({}, {} parameters{}, {}, {} of weights)\n"
      "{}"
      "  KV cache   {} tokens ({}, {}), sequences of up to {} tokens\n"
      "  HTTP       {}/v1\n",
      kVersion, backend_.load_seconds, config_.served_model_name,
      engine::ToString(backend_.model.architecture), HumanCount(backend_.model.num_parameters()),
      active, ArithmeticName(backend_.quantization_name), HumanBytes(backend_.weight_bytes),
      backend_.device, backend_.kv.num_blocks * config_.block_size, ToString(backend_.kv_dtype),
      HumanBytes(backend_.kv.bytes), max_model_len_, url);
  if (!config_.disable_web) banner += fmt::format("  Page       {}/\n", url);
  if (grpc_ != nullptr)
    banner += fmt::format("  gRPC       {}:{} (nibble.v1.Nibble{})\n", host, grpc_->port(),
                          access_.tls == nullptr ? "" : ", TLS");
  if (health_port_ != nullptr)
    banner += fmt::format("  health     http://{}:{}/health\n", host, health_port_->port());
  banner += fmt::format(
      "Try:\n"
      "  curl {}://{}:{}/v1/chat/completions -H 'Content-Type: application/json'{} \\\n"
      "    -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Tell me a "
      "story about a brave "
      "dog.\"}}]}}'\n",
      scheme, ReachableHost(config_.host), http_->port(),
      access_.keys == nullptr ? "" : " -H \"Authorization: Bearer $NIBBLE_API_KEY\"",
      config_.served_model_name);
  return banner;
}

absl::Status ServingStack::Failure() const {
  const absl::Status health = engine_->Health();
  return absl::IsUnavailable(health) ? absl::OkStatus() : health;
}

absl::Status ServingStack::Shutdown() {
  health_.StartDraining();
  http_->EndKeepAlive();
  std::this_thread::sleep_for(std::chrono::seconds(config_.lifecycle.drain_delay_seconds));
  gate_.Close();
  const absl::Status drained =
      engine_->Drain(int64_t{config_.lifecycle.shutdown_timeout_seconds} * 1'000'000'000);
  const auto engine_has_stopped = EndProcessIfItHangs();
  if (recorder_ != nullptr) recorder_->Stop();
  // Before the front ends: who is cut off still learns why.
  engine_->Stop();
  engine_has_stopped->store(true);
  // The last deltas are queued to the sockets by now; give slow clients a moment to take them.
  constexpr int64_t kFlushMs = 2000;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kFlushMs);
  http_->StopAccepting();
  if (grpc_ != nullptr) grpc_->Stop(kFlushMs);
  while (http_->num_connections() > 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  http_->Stop();
  if (health_port_ != nullptr) health_port_->Stop();
  return drained;
}

}  // namespace nibble::cli
