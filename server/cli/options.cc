// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The command line. CLI11 stays in this one source: its header costs seconds per source.
#include <cstdio>
#include <functional>
#include <string>
#include <system_error>
#include <vector>

#include "fmt/core.h"

#include "CLI/CLI.hpp"
#include "base/log.h"
#include "client/chat/chat.h"
#include "server/cli/bench_command.h"
#include "server/cli/commands.h"
#include "server/cli/version.h"

namespace nibble::cli {
namespace {

void AddModelOptions(CLI::App* app, server::ModelOptions* options) {
  app->add_option("MODEL", options->model, "Hugging Face model directory")->required();
  app->add_option("--device", options->device, "auto, cpu or cuda (this build: cpu)")
      ->capture_default_str();
  app->add_option("--dtype", options->dtype,
                  "storage of unquantized weights: auto (the checkpoint's), float32, bfloat16, "
                  "float16")
      ->capture_default_str();
  app->add_option("--kv-cache-dtype", options->kv_cache_dtype,
                  "storage of the KV cache: auto (as --dtype), float32, bfloat16, float16, or int8 "
                  "(with a scale for each head and token)")
      ->capture_default_str();
  app->add_option(
         "-q,--quantization", options->quantization,
         "quantize while loading: none (as the checkpoint is stored; 4-bit weights run with "
         "8-bit activations), w4a8, w8a8, or w4a16 (4-bit weights, float activations)")
      ->capture_default_str();
  app->add_option(
         "--head-quantization", options->head_quantization,
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
  app->add_option("-o,--output", options->output,
                  "directory to write; work in progress is in OUTPUT.partial, from where the same "
                  "command goes on after an interruption")
      ->required();
  app->add_option("--scheme", options->scheme,
                  "w4a8: 4-bit weights, 8-bit activations; w8a8; w4a16: 4-bit weights alone")
      ->capture_default_str();
  app->add_option(
         "--method", options->method,
         "rtn: round to nearest; gptq; awq: scaling search, clipping; odyssey: clipping, "
         "gptq; fptq: logarithmic equalization where it lowers the error (the paper goes by "
         "range), gptq; or a list of steps, one of awq "
         "(scaling alone), fptq, then clip, then one of rtn, gptq: 'awq,clip,gptq'")
      ->capture_default_str();
  app->add_option("--group-size", options->group_size,
                  "input channels per scale, a multiple of 8, or 'channel' (also -1): one scale "
                  "per output channel (default: 128; w8a8: channel)");
  app->add_flag("--norm-tweaking", options->norm_tweaking,
                "adjust the norms after rounding, so that outputs keep their moments");
  app->add_option("--norm-tweaking-lr", options->norm_tweaking_lr,
                  "its learning rate in the first layer; it grows to almost twice this in the last")
      ->capture_default_str()
      ->needs("--norm-tweaking");
  app->add_option("--calibration-data", options->calibration_data,
                  "text file, .jsonl file with a \"text\" a line, or 'self-generated': text that "
                  "the model writes (default: self-generated where the method needs calibration)");
  app->add_option("--calibration-samples", options->calibration_samples, "sequences")
      ->capture_default_str();
  app->add_option("--calibration-length", options->calibration_length,
                  "tokens of each; at most the model's positions")
      ->capture_default_str();
  app->add_option("--seed", options->seed, "of self-generated text")->capture_default_str();
  app->add_option("--eval-data", options->eval_data,
                  "text file: compare its perplexity on source and output at the end");
  app->add_option("--threads", options->threads, "threads (0: all CPUs of this process)")
      ->capture_default_str();
  app->add_flag("--overwrite", options->overwrite, "replace an output directory that exists");
  app->add_flag("--restart", options->restart, "discard what an unfinished run left");
}

// Comma-separated numbers.
void AddList(CLI::App* app, const std::string& name, std::vector<int64_t>* values,
             const std::string& description) {
  app->add_option(name, *values, description)
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
}

void AddBenchThreads(CLI::App* app, BenchOptions* options) {
  app->add_option("--threads", options->threads, "threads (0: all CPUs of this process)")
      ->capture_default_str();
}

void AddBenchGemm(CLI::App* app, BenchOptions* options) {
  bench::GemmBenchOptions* gemm = &options->gemm;
  app->add_option("--n", gemm->n, "output channels")->capture_default_str();
  app->add_option("--k", gemm->k, "input channels")->capture_default_str();
  AddList(app, "--m", &gemm->m, "rows of activations");
  app->add_option("--filter", gemm->filter, "only variants with this in their name");
  app->add_option("--seconds", gemm->seconds, "time for each figure")->capture_default_str();
  AddBenchThreads(app, options);
}

void AddBenchLayer(CLI::App* app, BenchOptions* options) {
  bench::LayerBenchOptions* layer = &options->layer;
  app->add_option("--shape", layer->shape, "a model whose layers have this shape")
      ->capture_default_str();
  app->add_option("--model", layer->model, "model directory whose config.json has the shape")
      ->excludes("--shape");
  app->add_option("--weights", layer->weights,
                  "f32, bf16, f16, w8a8, w4a16, w4a8-folded, w4a8-integer or w4a8-float")
      ->capture_default_str();
  app->add_option("--kv-cache-dtype", layer->kv_cache_dtype, "float32, bfloat16, float16 or int8")
      ->capture_default_str();
  AddList(app, "--batch", &layer->batches, "sequences that decode one token each");
  AddList(app, "--context", &layer->contexts, "tokens of each of them");
  AddList(app, "--prompt", &layer->prompts, "tokens of a prompt computed in one step");
  app->add_option("--seconds", layer->seconds, "time for each case")->capture_default_str();
  AddBenchThreads(app, options);
}

void AddBenchAttention(CLI::App* app, BenchOptions* options) {
  bench::AttentionBenchOptions* attention = &options->attention;
  app->add_option("--kv-cache-dtype", attention->dtypes, "float32, bfloat16, float16, int8")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  AddList(app, "--head-dim", &attention->head_dims, "of every head");
  app->add_option("--heads", attention->num_heads, "query heads")->capture_default_str();
  app->add_option("--kv-heads", attention->num_kv_heads, "heads of the cache")
      ->capture_default_str();
  AddList(app, "--batch", &attention->sequences, "sequences that decode one token each");
  AddList(app, "--context", &attention->contexts, "tokens of each of them");
  AddList(app, "--prompt", &attention->prefills, "tokens of a prompt computed in one step");
  app->add_option("--block-size", attention->block_size, "tokens per KV cache block")
      ->capture_default_str();
  app->add_flag("--scattered", attention->scattered, "blocks in random order");
  app->add_option("--max-cache-bytes", attention->max_cache_bytes,
                  "cases with a larger cache are left out")
      ->capture_default_str();
  app->add_option("--seconds", attention->seconds, "time for each case")->capture_default_str();
  AddBenchThreads(app, options);
}

void AddBenchDecode(CLI::App* app, BenchOptions* options) {
  AddModelOptions(app, &options->model);
  AddList(app, "--batch", &options->decode.batches, "sequences of a step");
  AddList(app, "--context", &options->decode.contexts,
          "tokens of each sequence before the first step");
  app->add_option("--steps", options->decode.steps, "steps of a repetition")->capture_default_str();
  app->add_option("--repetitions", options->decode.repetitions, "the median counts")
      ->capture_default_str();
}

void AddBenchPrefill(CLI::App* app, BenchOptions* options) {
  AddModelOptions(app, &options->model);
  AddList(app, "--prompt", &options->prefill.prompts, "tokens of the prompt");
  app->add_option("--max-num-batched-tokens", options->prefill.max_num_batched_tokens,
                  "longer prompts are computed in chunks of this")
      ->capture_default_str();
  app->add_option("--repetitions", options->prefill.repetitions, "the median counts")
      ->capture_default_str();
}

// Adds `nibble bench` and its commands; the command that is given sets *run.
void AddBench(CLI::App* app, BenchOptions* options, std::function<int()>* run) {
  app->require_subcommand(1);
  const auto add = [&](const char* name, const char* description,
                       void (*add_options)(CLI::App*, BenchOptions*),
                       int (*command)(const BenchOptions&)) {
    CLI::App* const subcommand = app->add_subcommand(name, description);
    add_options(subcommand, options);
    subcommand->callback([=] { *run = [=] { return command(*options); }; });
  };
  add("gemm", "the matrix products alone, every variant this CPU runs", AddBenchGemm, RunBenchGemm);
  add("layer", "one decoder layer, op by op", AddBenchLayer, RunBenchLayer);
  add("attention", "paged attention alone", AddBenchAttention, RunBenchAttention);
  add("decode", "a model's steps while it generates", AddBenchDecode, RunBenchDecode);
  add("prefill", "prompts through a model", AddBenchPrefill, RunBenchPrefill);
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
  BenchOptions bench;
  std::function<int()> run_bench;
  CLI::App* bench_app = app.add_subcommand("bench", "measure speed; prints JSON");
  AddBench(bench_app, &bench, &run_bench);
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
    if (bench_app->parsed()) return run_bench();
    return RunInspect(inspect);
  });
}

}  // namespace nibble::cli
