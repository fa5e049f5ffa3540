// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Options of nibble bench.
#include <functional>
#include <string>
#include <vector>

#include "fmt/core.h"

#include "CLI/CLI.hpp"
#include "server/cli/option_list.h"
#include "server/cli/options.h"

namespace nibble::cli {
namespace {

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
  AddCudaGemm(app, options);
}

void AddBenchGroupedGemm(CLI::App* app, BenchOptions* options) {
  bench::GroupedGemmBenchOptions* grouped = &options->grouped_gemm;
  app->add_option("--filter", grouped->filter,
                  "only shapes with this in their name: mixtral up, mixtral down, qwen3 up, qwen3 "
                  "down");
  app->add_option("--format", grouped->formats,
                  "f32, bf16, f16, w8a8, w4a16, w4a8-folded, w4a8-integer, w4a8-float")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  AddList(app, "--tokens", &grouped->tokens, "that go to experts together");
  app->add_option("--seconds", grouped->seconds, "time for each row")->capture_default_str();
  AddBenchThreads(app, options);
}

void AddBenchMoe(CLI::App* app, BenchOptions* options) {
  bench::MoeBenchOptions* moe = &options->moe;
  app->add_option("--shape", moe->shapes, "models whose layers have this shape")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  app->add_option("--weights", moe->weights,
                  "f32, bf16, f16, w8a8, w4a16, w4a8-folded, w4a8-integer or w4a8-float")
      ->capture_default_str();
  AddList(app, "--tokens", &moe->tokens, "of a step: sequences that decode one each");
  app->add_option("--seconds", moe->seconds, "time for each row")->capture_default_str();
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
  AddCudaAttention(app, options);
}

// Who the ranks of a group are, how they meet and how they code; all but what is sent.
void AddGroup(CLI::App* app, bench::AllReduceBenchOptions* allreduce) {
  app->add_option("--ranks", allreduce->ranks, "of the group")->capture_default_str();
  app->add_option("--transport", allreduce->transport, "shm, tcp, or threads of one process")
      ->capture_default_str();
  app->add_option("--hosts", allreduce->hosts,
                  "divide the ranks among so many hosts: shared memory inside, tcp between (0: one "
                  "rank each)")
      ->capture_default_str();
  app->add_option("--group-size", allreduce->group_size, "values with one scale: 32, 64, 128")
      ->capture_default_str();
  app->add_flag("--log2-scales", allreduce->log2_scales, "scales of one byte instead of bf16");
  app->add_flag("--spikes", allreduce->spikes, "each group's extremes travel as bf16");
  app->add_flag("--rotation,!--no-rotation", allreduce->rotation,
                "codes are of the group's Hadamard transform (default: on, as in serve)");
  app->add_option("--seconds", allreduce->seconds, "time for each figure")->capture_default_str();
  app->add_option("--threads", allreduce->threads,
                  "of each rank (0: this host's divided among its ranks)")
      ->capture_default_str();
  app->add_option("--rank", allreduce->rank,
                  "run as this rank alone; the others are started by hand as well");
  app->add_option("--rendezvous", allreduce->rendezvous,
                  "with --rank: an empty folder that all ranks see");
  app->add_option("--bind-address", allreduce->bind_address, "of this host, for tcp")
      ->capture_default_str();
}

void AddBenchAllReduce(CLI::App* app, BenchOptions* options) {
  bench::AllReduceBenchOptions* allreduce = &options->allreduce;
  AddGroup(app, allreduce);
  AddList(app, "--sizes", &allreduce->sizes, "bytes of the messages as bf16");
  app->add_option("--row-size", allreduce->row_size, "values of a row")->capture_default_str();
  app->add_option("--codecs", allreduce->codecs,
                  "none, float32, bf16, int8, int6, int5, int4, int3, int2, auto")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  AddCudaAllReduce(app, options);
}

void AddBenchMoeLayout(CLI::App* app, BenchOptions* options) {
  bench::MoeLayoutBenchOptions* layout = &options->moe_layout;
  AddGroup(app, &layout->group);
  AddList(app, "--tokens", &layout->tokens, "of a step");
  app->add_option("--hidden-size", layout->group.row_size, "values of a token")
      ->capture_default_str();
  app->add_option("--experts", layout->num_experts, "of the layer, divided among the ranks")
      ->capture_default_str();
  app->add_option("--experts-per-token", layout->num_experts_per_tok, "that a token goes to")
      ->capture_default_str();
  app->add_option("--codecs", layout->codecs, "float32, bf16, int8, int6, int5, int4, int3, int2")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
}

void AddBenchCodec(CLI::App* app, BenchOptions* options) {
  bench::CodecBenchOptions* codec = &options->codec;
  AddList(app, "--bits", &codec->bits, "2, 3, 4, 5, 6, 8; 16: bf16, 32: float32");
  AddList(app, "--group-size", &codec->group_sizes, "32, 64, 128");
  app->add_option("--variant", codec->variants, "plain, log2, spikes, hadamard")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  AddList(app, "--rows", &codec->rows, "rows coded at a time");
  app->add_option("--row-size", codec->row_size, "values of a row")->capture_default_str();
  app->add_option("--ranks", codec->ranks, "whose codes a reduction sums")->capture_default_str();
  app->add_option("--seconds", codec->seconds, "time for each figure")->capture_default_str();
  AddBenchThreads(app, options);
  AddCudaCodec(app, options);
}

void AddBenchActivations(CLI::App* app, BenchOptions* options) {
  AddModelOptions(app, &options->model);
  app->add_option("--data", options->data, "text file (UTF-8)")->required();
  app->add_option("--tensor-parallel-size", options->parallel.tensor_parallel_size,
                  "ranks, as threads of this process")
      ->capture_default_str();
  bench::ActivationBenchOptions* activations = &options->activations;
  app->add_option("--tokens", activations->tokens, "of the text")->capture_default_str();
  app->add_option("--context", activations->context, "the text is cut into windows of this")
      ->capture_default_str();
  AddList(app, "--bits", &activations->bits, "2, 3, 4, 5, 6, 8");
  AddList(app, "--group-size", &activations->group_sizes, "32, 64, 128");
}

void DescribeRandomModels(CLI::App* app) {
  app->get_option("MODEL")->description(
      "Hugging Face model directory, or random:SHAPE, made in memory: random:llama-3-8b");
}

void AddBenchDecode(CLI::App* app, BenchOptions* options) {
  AddModelOptions(app, &options->model);
  DescribeRandomModels(app);
  AddList(app, "--batch", &options->decode.batches, "sequences of a step");
  AddList(app, "--context", &options->decode.contexts,
          "tokens of each sequence before the first step");
  app->add_option("--steps", options->decode.steps, "steps of a repetition")->capture_default_str();
  app->add_option("--repetitions", options->decode.repetitions, "the median counts")
      ->capture_default_str();
  AddSave(app, &options->decode.save);
}

void AddBenchStepChannel(CLI::App* app, BenchOptions* options) {
  AddModelOptions(app, &options->model);
  AddDeviceMemoryOption(app, &options->model);
  app->add_option("--tensor-parallel-size", options->parallel.tensor_parallel_size,
                  "ranks, each a process of this host")
      ->capture_default_str();
  app->add_option("--rank-threads", options->parallel.rank_threads,
                  "of each rank (0: this host's divided among its ranks)")
      ->capture_default_str();
  bench::StepChannelBenchOptions* channel = &options->step_channel;
  app->add_option("--steps", channel->steps, "of the empty plan")->capture_default_str();
  app->add_option("--pause-us", channel->pause_us, "between two steps, so that ranks sleep")
      ->capture_default_str();
  AddList(app, "--batch", &channel->batches, "sequences of the decode plans that are coded");
}

void AddBenchPrefill(CLI::App* app, BenchOptions* options) {
  AddModelOptions(app, &options->model);
  DescribeRandomModels(app);
  AddList(app, "--prompt", &options->prefill.prompts, "tokens of the prompt");
  app->add_option("--max-num-batched-tokens", options->prefill.max_num_batched_tokens,
                  "longer prompts are computed in chunks of this")
      ->capture_default_str();
  app->add_option("--repetitions", options->prefill.repetitions, "the median counts")
      ->capture_default_str();
  AddSave(app, &options->prefill.save);
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
  add("serve", "a running server, over HTTP or gRPC: throughput and latencies", AddBenchServe,
      [](const BenchOptions& given) { return RunBenchServe(given.load); });
  add("sweep", "a running server at several rates or concurrencies", AddBenchSweep,
      [](const BenchOptions& given) { return RunBenchSweep(given.load); });
  add("gemm", "the matrix products alone, every variant this CPU runs", AddBenchGemm, RunBenchGemm);
  add("grouped-gemm", "the products of experts beside a dense one of the same work",
      AddBenchGroupedGemm, RunBenchGroupedGemm);
  add("layer", "one decoder layer, op by op", AddBenchLayer, RunBenchLayer);
  add("attention", "paged attention alone", AddBenchAttention, RunBenchAttention);
  add("moe", "a layer with experts beside a dense one of the same active parameters", AddBenchMoe,
      RunBenchMoe);
  add("moe-layout", "what the ranks of an expert layer exchange: all-reduces or all-to-alls",
      AddBenchMoeLayout, RunBenchMoeLayout);
  add("allreduce", "a group's all-reduce, every codec and size", AddBenchAllReduce,
      RunBenchAllReduce);
  add("codec", "the codecs of compressed collectives", AddBenchCodec, RunBenchCodec);
  add("activations", "what a model's ranks sum, and what every codec loses of it",
      AddBenchActivations, RunBenchActivations);
  add("decode", "a model's steps while it generates", AddBenchDecode, RunBenchDecode);
  add("prefill", "prompts through a model", AddBenchPrefill, RunBenchPrefill);
  add("step-channel", "what a step costs before ranks compute anything", AddBenchStepChannel,
      RunBenchStepChannel);
}

}  // namespace nibble::cli
