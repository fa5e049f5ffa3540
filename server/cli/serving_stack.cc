// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/serving_stack.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <thread>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "engine/exec/local_executor.h"
#include "engine/model/memory.h"
#include "server/chat/tokenizer_config.h"
#include "server/cli/version.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

struct KvSize {
  int64_t num_blocks = 0;
  int64_t bytes = 0;
};

// As many blocks as max_num_seqs full sequences need, within the given bytes or a quarter of the
// free memory. At least one full sequence must fit: a request may need it.
absl::StatusOr<KvSize> SizeKvCache(const server::ServeConfig& config, const engine::Model& model,
                                   int64_t max_model_len) {
  const int64_t block_bytes =
      engine::KvCache::BlockBytes(model.rank_config(), config.block_size, model.kv_dtype());
  const int64_t blocks_per_seq = (max_model_len + config.block_size - 1) / config.block_size;
  const bool given = config.kv_cache_memory_bytes > 0;
  const int64_t budget = given ? config.kv_cache_memory_bytes : engine::AvailableMemoryBytes() / 4;
  const char* remedy =
      given ? "a larger --kv-cache-memory-bytes" : "a machine with more free memory";
  int64_t num_blocks = budget / block_bytes;
  if (num_blocks == 0) {
    return ResourceExhausted(
        "a KV cache of {} does not hold one block of {} tokens, which needs {}: use {}",
        HumanBytes(budget), config.block_size, HumanBytes(block_bytes), remedy);
  }
  if (!given) num_blocks = std::min(num_blocks, blocks_per_seq * config.max_num_seqs);
  if (num_blocks < blocks_per_seq) {
    return ResourceExhausted(
        "a KV cache of {} holds {} tokens, one sequence of --max-model-len {} needs {}: use "
        "--max-model-len {} or less, "
        "or {}",
        HumanBytes(budget), num_blocks * config.block_size, max_model_len,
        HumanBytes(blocks_per_seq * block_bytes), num_blocks * config.block_size, remedy);
  }
  return KvSize{num_blocks, num_blocks * block_bytes};
}

absl::StatusOr<int64_t> ChooseMaxModelLen(const server::ServeConfig& config,
                                          const engine::ModelConfig& model) {
  if (config.max_model_len == 0) return model.max_position_embeddings;
  if (config.max_model_len > model.max_position_embeddings) {
    return InvalidArgument("--max-model-len is {}, the model's maximum is {}", config.max_model_len,
                           model.max_position_embeddings);
  }
  return config.max_model_len;
}

std::string UrlHost(const std::string& host) {
  if (host == "0.0.0.0") return "127.0.0.1";
  if (host == "::") return "[::1]";
  return host.find(':') == std::string::npos ? host : fmt::format("[{}]", host);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServingStack>> ServingStack::Start(
    const server::ServeConfig& config) {
  NIBBLE_RETURN_IF_ERROR(config.Validate());
  std::unique_ptr<ServingStack> stack(new ServingStack(config));
  NIBBLE_ASSIGN_OR_RETURN(LoadedModel loaded, LoadModel(config.model));
  NIBBLE_RETURN_IF_ERROR(stack->StartEngine(std::move(loaded)));
  NIBBLE_RETURN_IF_ERROR(stack->StartService());
  NIBBLE_RETURN_IF_ERROR(stack->StartHttp());
  NIBBLE_RETURN_IF_ERROR(stack->StartGrpc());
  return stack;
}

absl::Status ServingStack::StartEngine(LoadedModel loaded) {
  const engine::ModelConfig& model_config = loaded.model->config();
  device_ = loaded.device;
  load_seconds_ = loaded.load_seconds;
  vocab_size_ = model_config.vocab_size;
  pool_ = std::move(loaded.pool);
  tokenizer_ = std::move(loaded.tokenizer);
  model_summary_ = fmt::format(
      "{}, {} parameters, {}, {} of weights", engine::ToString(model_config.architecture),
      HumanCount(model_config.num_parameters()), loaded.model->quantization_name(),
      HumanBytes(loaded.model->weight_bytes()));
  NIBBLE_ASSIGN_OR_RETURN(max_model_len_, ChooseMaxModelLen(config_, model_config));
  // Before the cache takes its share of what memory is free.
  NIBBLE_RETURN_IF_ERROR(loaded.model->Reserve(
      {.max_tokens = config_.max_num_batched_tokens, .max_positions = max_model_len_},
      pool_.get()));
  NIBBLE_ASSIGN_OR_RETURN(const KvSize kv, SizeKvCache(config_, *loaded.model, max_model_len_));
  kv_tokens_ = kv.num_blocks * config_.block_size;
  kv_bytes_ = kv.bytes;
  kv_dtype_ = loaded.model->kv_dtype();
  NIBBLE_ASSIGN_OR_RETURN(engine::GenerationConfig generation,
                          engine::LoadGenerationConfig(config_.model.model));
  if (config_.served_model_name.empty())
    config_.served_model_name = ModelNameFromPath(config_.model.model);
  metrics_ = std::make_unique<server::Metrics>(
      server::MetricsConfig{.model_name = config_.served_model_name,
                            .block_size = config_.block_size,
                            .num_blocks = kv.num_blocks,
                            .max_model_len = max_model_len_,
                            .enable_prefix_caching = config_.enable_prefix_caching});

  engine::EngineConfig engine_config;
  engine_config.max_num_seqs = config_.max_num_seqs;
  engine_config.max_num_batched_tokens = config_.max_num_batched_tokens;
  engine_config.max_queued_requests = config_.max_queued_requests;
  engine_config.enable_chunked_prefill = config_.enable_chunked_prefill;
  engine_config.enable_prefix_caching = config_.enable_prefix_caching;
  engine_config.eos_token_ids =
      generation.eos_token_ids.empty() ? model_config.eos_token_ids : generation.eos_token_ids;
  engine_config.seed = static_cast<uint64_t>(config_.seed);
  const engine::LocalExecutorOptions executor_options = {
      .block_size = config_.block_size,
      .num_blocks = kv.num_blocks,
      .max_model_len = max_model_len_,
      .max_num_batched_tokens = config_.max_num_batched_tokens,
      .max_num_seqs = config_.max_num_seqs};
  NIBBLE_ASSIGN_OR_RETURN(
      auto executor,
      engine::LocalExecutor::Create(std::move(loaded.model), executor_options, pool_.get()));
  NIBBLE_ASSIGN_OR_RETURN(engine_, engine::Engine::Create(engine_config, std::move(executor),
                                                          tokenizer_.get(), metrics_.get()));
  max_model_len_ = engine_->config().sampling_limits.max_model_len;  // what is enforced
  return absl::OkStatus();
}

absl::Status ServingStack::StartService() {
  server::GenerationService::Parts parts;
  parts.model = {.name = config_.served_model_name,
                 .created_unix_seconds = static_cast<int64_t>(std::time(nullptr)),
                 .max_model_len = max_model_len_,
                 .vocab_size = vocab_size_};
  parts.engine = engine_.get();
  parts.tokenizer = tokenizer_.get();
  NIBBLE_ASSIGN_OR_RETURN(parts.defaults, engine::LoadGenerationConfig(config_.model.model));
  NIBBLE_ASSIGN_OR_RETURN(server::TokenizerConfig tokenizer_config,
                          server::LoadTokenizerConfig(config_.model.model));
  parts.template_variables = std::move(tokenizer_config.template_variables);
  std::string source = std::move(tokenizer_config.chat_template);
  if (!config_.chat_template.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(source, ReadFile(config_.chat_template, kMaxTemplateBytes));
  }
  if (source.empty()) {
    log::Warning(
        "{} has no chat template: chat requests are refused; --chat-template FILE gives one",
        config_.model.model);
  } else {
    absl::StatusOr<std::unique_ptr<server::ChatTemplate>> parsed =
        server::ChatTemplate::Parse(std::move(source));
    if (!parsed.ok()) return Annotate(parsed.status(), "chat template");
    parts.chat_template = *std::move(parsed);
  }
  parts.on_admitted = [metrics = metrics_.get()](int64_t n) { metrics->OnAdmitted(n); };
  service_ = std::make_unique<server::GenerationService>(std::move(parts));
  return absl::OkStatus();
}

absl::Status ServingStack::StartHttp() {
  NIBBLE_ASSIGN_OR_RETURN(http_,
                          server::HttpServer::Create({.host = config_.host,
                                                      .port = config_.port,
                                                      .num_threads = config_.http_threads,
                                                      .max_body_bytes = config_.max_body_bytes}));
  server::OpenAiConfig api_config;
  api_config.version = kVersion;
  api_config.system_fingerprint = fmt::format("nibble-{}", kVersion);
  api_config.metrics = [this] { return metrics_->Serialize(engine_->Stats()); };
  api_ = std::make_unique<server::OpenAiApi>(service_.get(), std::move(api_config));
  api_->Register(http_.get());
  http_->SetObserver(
      [this](std::string_view handler, std::string_view method, int status, double seconds) {
        metrics_->OnHttp(handler, method, status, seconds);
      });
  return http_->Start();
}

absl::Status ServingStack::StartGrpc() {
  if (config_.grpc_port < 0) return absl::OkStatus();
  server::GrpcServerConfig grpc_config;
  grpc_config.host = config_.host;
  grpc_config.port = config_.grpc_port;
  grpc_config.max_receive_message_bytes = static_cast<int>(config_.max_body_bytes);
  NIBBLE_ASSIGN_OR_RETURN(grpc_, server::GrpcServer::Start(grpc_config, service_.get()));
  return absl::OkStatus();
}

std::string ServingStack::Banner() const {
  const std::string host = UrlHost(config_.host);
  const std::string url = fmt::format("http://{}:{}", host, http_->port());
  std::string banner = fmt::format(
      "nibble {} is ready after {:.1f} s\n"
      "  model      {} ({})\n"
      "  device     {}: {}, {}, {} threads{} ({})\n"
      "  KV cache   {} tokens ({}, {}), sequences of up to {} tokens\n"
      "  HTTP       {}/v1\n",
      kVersion, load_seconds_, config_.served_model_name, model_summary_, device_.device,
      HostCpuFeatures().name, ToString(device_.isa), device_.threads,
      device_.cpus.empty() ? "" : ", one to a CPU", device_.reason, kv_tokens_, ToString(kv_dtype_),
      HumanBytes(kv_bytes_), max_model_len_, url);
  if (grpc_ != nullptr)
    banner += fmt::format("  gRPC       {}:{} (nibble.v1.Nibble)\n", host, grpc_->port());
  banner += fmt::format(
      "Try:\n"
      "  curl {}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
      "    -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Tell me a "
      "story about a brave "
      "dog.\"}}]}}'\n",
      url, config_.served_model_name);
  return banner;
}

absl::Status ServingStack::Shutdown(int timeout_seconds) {
  service_->StartDraining();
  const absl::Status drained = engine_->Drain(int64_t{timeout_seconds} * 1'000'000'000);
  // Before the front ends: who is cut off still learns why.
  engine_->Stop();
  // The last deltas are queued to the sockets by now; give slow clients a moment to take them.
  constexpr int64_t kFlushMs = 2000;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kFlushMs);
  http_->StopAccepting();
  if (grpc_ != nullptr) grpc_->Stop(kFlushMs);
  while (http_->num_connections() > 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  http_->Stop();
  return drained;
}

}  // namespace nibble::cli
