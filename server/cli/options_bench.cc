// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Options of nibble bench.
#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "server/cli/options.h"

namespace nibble::cli {
namespace {

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

}  // namespace

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

}  // namespace nibble::cli
