// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The command line. CLI11 stays in this one source: its header costs seconds per source.
#include <cstdio>
#include <functional>
#include <string>
#include <system_error>

#include "fmt/core.h"

#include "CLI/CLI.hpp"
#include "base/log.h"
#include "client/chat/chat.h"
#include "server/cli/commands.h"
#include "server/cli/version.h"

namespace nibble::cli {
namespace {

void AddModelOptions(CLI::App* app, server::ModelOptions* options) {
  app->add_option("MODEL", options->model, "Hugging Face model directory")->required();
  app->add_option("--device", options->device, "auto, cpu or cuda (this build: cpu)")
      ->capture_default_str();
  app->add_option("--dtype", options->dtype,
                  "storage of unquantized weights and KV cache: auto (the checkpoint's), float32, "
                  "bfloat16, float16")
      ->capture_default_str();
  app->add_option("-q,--quantization", options->quantization,
                  "quantize while loading: none (as the checkpoint is stored; 4-bit weights run with "
                  "8-bit activations), w4a8, w8a8, or w4a16 (4-bit weights expanded to float, float "
                  "activations: for measurements)")
      ->capture_default_str();
  app->add_option("--head-quantization", options->head_quantization,
                  "the output head: none (as --dtype says), int8, int4, or auto (int8 for quantized "
                  "models when a plain head is more than 1/8 of the bytes that a step reads)")
      ->capture_default_str();
  app->add_option("--threads", options->threads, "compute threads (0: all CPUs of this process)")
      ->capture_default_str();
  app->add_option("--cpu-binding", options->cpu_binding,
                  "CPUs of the compute threads: auto (one each when there are as many as threads), "
                  "none, or a list such as 0-3,8")
      ->capture_default_str();
}

void AddServe(CLI::App* app, server::ServeConfig* config) {
  AddModelOptions(app, &config->model);
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
         "KV cache size (0: for max-num-seqs full sequences, at most a quarter of free memory)")
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
  app->add_option("--shutdown-timeout", config->shutdown_timeout_seconds,
                  "seconds that SIGTERM waits for answers in progress")
      ->capture_default_str();
}

void AddPerplexity(CLI::App* app, PerplexityOptions* options) {
  AddModelOptions(app, &options->model);
  app->add_option("--data", options->data, "text file (UTF-8)")->required();
  app->add_option("--context", options->context, "tokens per window")->capture_default_str();
  app->add_option("--stride", options->stride, "tokens between window starts")
      ->capture_default_str();
  app->add_option("--limit", options->limit, "score only the first tokens of the text (0: all)")
      ->capture_default_str();
  app->add_flag("--json", options->json, "print JSON");
}

void AddInspect(CLI::App* app, InspectOptions* options) {
  app->add_option("MODEL", options->model, "Hugging Face model directory")->required();
  app->add_flag("--tensors", options->tensors, "list every tensor");
  app->add_flag("--json", options->json, "print JSON");
}

void AddQuantize(CLI::App* app, QuantizeOptions* options) {
  app->add_option("SRC", options->source, "full-precision Hugging Face model directory")
      ->required();
  app->add_option("-o,--output", options->output, "directory to write")->required();
  app->add_option("--scheme", options->scheme, "w4a8: 4-bit weights in groups, 8-bit activations")
      ->capture_default_str();
  app->add_option("--method", options->method, "rtn: round to nearest")->capture_default_str();
  app->add_option("--group-size", options->group_size, "input channels per scale")
      ->capture_default_str();
  app->add_option("--threads", options->threads, "threads (0: all CPUs of this process)")
      ->capture_default_str();
  app->add_flag("--overwrite", options->overwrite, "replace an output directory that exists");
  app->add_option("--report", options->report, "write the per-layer report to this file as JSON");
}

void AddChat(CLI::App* app, client::ChatOptions* options) {
  app->add_option("--url", options->url, "server to talk to")->capture_default_str();
  app->add_option("--model", options->model, "model name (default: the first one served)");
  app->add_option("--system", options->system, "system message");
  app->add_option("--temperature", options->temperature,
                  "sampling temperature (default: the server's)");
  app->add_option("--top-p", options->top_p, "nucleus sampling (default: the server's)");
  app->add_option("--seed", options->seed, "seed of the sampling");
  app->add_option("--max-tokens", options->max_tokens, "longest answer (default: what fits)");
  app->add_flag("--stats", options->stats, "print tokens and speed after each answer");
}

// Results go out by fmt::print, which throws when standard output is closed or its disk is full.
int Guarded(const std::function<int()>& command) {
  try {
    return command();
  } catch (const std::system_error& error) {
    return Fail(Unavailable("writing the output: {}", error.what()));
  }
}

}  // namespace

void PrintMessage(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

int Fail(const absl::Status& status) {
  std::string_view message(status.message().data(), status.message().size());
  while (!message.empty()) {
    const size_t end = message.find('\n');
    PrintMessage(fmt::format("nibble: error: {}\n", message.substr(0, end)));
    message.remove_prefix(end == std::string_view::npos ? message.size() : end + 1);
  }
  return 1;
}

int Main(int argc, char** argv) {
  CLI::App app("nibble: a server for quantized large language models", "nibble");
  app.set_version_flag("--version", std::string("nibble ") + kVersion);
  app.require_subcommand(1);
  app.fallthrough();
  std::string log_level = "info";
  app.add_option("--log-level", log_level, "debug, info, warning, error or off")
      ->capture_default_str();

  server::ServeConfig serve;
  CLI::App* serve_app =
      app.add_subcommand("serve", "serve a model over HTTP (OpenAI API) and gRPC");
  AddServe(serve_app, &serve);
  client::ChatOptions chat;
  CLI::App* chat_app = app.add_subcommand("chat", "talk to a running server in the terminal");
  AddChat(chat_app, &chat);
  QuantizeOptions quantize;
  CLI::App* quantize_app = app.add_subcommand("quantize", "write a quantized checkpoint");
  AddQuantize(quantize_app, &quantize);
  CLI::App* eval_app = app.add_subcommand("eval", "measure a model");
  eval_app->require_subcommand(1);
  PerplexityOptions perplexity;
  CLI::App* perplexity_app =
      eval_app->add_subcommand("perplexity", "perplexity of a text in sliding windows");
  AddPerplexity(perplexity_app, &perplexity);
  InspectOptions inspect;
  CLI::App* inspect_app = app.add_subcommand("inspect", "say what a model directory holds");
  AddInspect(inspect_app, &inspect);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  log::Level level = log::Level::kInfo;
  if (!log::ParseLevel(log_level, &level)) {
    Fail(
        InvalidArgument("--log-level is '{}', want debug, info, warning, error or off", log_level));
    return 2;
  }
  log::SetLevel(level);
  if (serve_app->parsed()) return RunServe(serve);
  return Guarded([&] {
    if (chat_app->parsed()) return client::RunChat(chat);
    if (quantize_app->parsed()) return RunQuantize(quantize);
    if (perplexity_app->parsed()) return RunPerplexity(perplexity);
    return RunInspect(inspect);
  });
}

}  // namespace nibble::cli
