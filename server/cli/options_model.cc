// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Options of a model, and of the commands that only read one.
#include "CLI/CLI.hpp"
#include "server/cli/cuda_engine.h"
#include "server/cli/options.h"

namespace nibble::cli {

void AddModelOptions(CLI::App* app, server::ModelOptions* options) {
  app->add_option("MODEL,--model", options->model, "Hugging Face model directory")->required();
  app->add_option("--device", options->device,
                  HasCudaEngine() ? "cpu, cuda, or auto (cuda where a device is usable)"
                                  : "auto, cpu or cuda (this build: cpu)")
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
  app->add_flag("--enforce-eager", options->enforce_eager,
                "with --device cuda, decode steps are launched op by op, not as captured graphs");
  app->add_option("--attention-backend", options->attention_backend,
                  "with --device cuda, whose attention kernels: auto (flashinfer where it has the "
                  "shape, whose bits depend on the batch; nibble with --batch-invariant), nibble, "
                  "flashinfer")
      ->capture_default_str();
  app->add_flag("--batch-invariant", options->batch_invariant,
                "a sequence's bits do not depend on what else is in its steps: with --device cuda, "
                "nibble's own kernels alone (no cuBLASLt, no flashinfer); on CPUs it is always so");
  app->add_option("--threads", options->threads, "compute threads (0: all CPUs of this process)")
      ->capture_default_str();
  app->add_option("--cpu-binding", options->cpu_binding,
                  "CPUs of the compute threads: auto (one each when there are as many as threads), "
                  "none, or a list such as 0-3,8")
      ->capture_default_str();
}

void AddDeviceMemoryOption(CLI::App* app, server::ModelOptions* options) {
  app->add_option("--gpu-memory-utilization", options->gpu_memory_utilization,
                  "with --device cuda, the share of a device's memory for weights, workspaces and "
                  "KV cache (0.98 at most)")
      ->capture_default_str();
}

void AddAllReduceOptions(CLI::App* app, server::AllReduceFlags* options, bool has_auto) {
  app->add_option("--all-reduce", options->all_reduce,
                  std::string("how the ranks' sums travel: ") +
                      (has_auto ? "auto (per message size, as measured at the start), " : "") +
                      "none, float32, bf16, int8, int6, int5, int4, int3, int2")
      ->capture_default_str();
  app->add_option("--all-reduce-group-size", options->group_size,
                  "values that share a scale: 32, 64 or 128")
      ->capture_default_str();
  app->add_option("--all-reduce-scale", options->scale,
                  "format of the scales: bf16, or log2 (one byte)")
      ->capture_default_str();
  app->add_flag("--all-reduce-spikes", options->spikes,
                "each group's least and greatest value travel in 16 bits");
  app->add_flag("--all-reduce-rotation,!--no-all-reduce-rotation", options->rotation,
                "codes are of each group's Hadamard transform: finer sums in the same bytes "
                "(default: on)");
}

void AddPipelineOption(CLI::App* app, int* pipeline_parallel_size) {
  app->add_option("--pipeline-parallel-size", *pipeline_parallel_size,
                  "stages that share the layers, each of --tensor-parallel-size ranks (also -pp)")
      ->capture_default_str();
}

void AddExpertParallelOptions(CLI::App* app, server::ExpertOptions* options) {
  app->add_flag("--enable-expert-parallel", options->enable_expert_parallel,
                "every expert whole on one rank: --expert-parallel-size = --tensor-parallel-size");
  app->add_option("--expert-parallel-size", options->expert_parallel_size,
                  "parts into which a layer's experts are dealt; the ranks of a part hold slices "
                  "of the same experts (0: the smallest that cuts no group of weights)")
      ->capture_default_str();
  app->add_flag("--check-routing", options->check_routing,
                "ranks compare in every step which experts tokens go to: one more exchange a "
                "step, for finding faults");
}

void AddPerplexity(CLI::App* app, PerplexityOptions* options) {
  AddModelOptions(app, &options->model);
  app->add_option("--data", options->data, "text file (UTF-8)")->required();
  app->add_option("--context", options->context, "tokens per window")->capture_default_str();
  app->add_option("--stride", options->stride, "tokens between window starts")
      ->capture_default_str();
  app->add_option("--limit", options->limit, "score only the first tokens of the text (0: all)")
      ->capture_default_str();
  app->add_option("--tensor-parallel-size", options->tensor_parallel_size,
                  "ranks, each with its share of the weights and of the threads; all in this "
                  "process")
      ->capture_default_str();
  AddPipelineOption(app, &options->pipeline_parallel_size);
  AddExpertParallelOptions(app, &options->experts);
  AddAllReduceOptions(app, &options->all_reduce, false);
  app->add_flag("--json", options->json, "print JSON");
}

void AddInspect(CLI::App* app, InspectOptions* options) {
  app->add_option("MODEL", options->model, "Hugging Face model directory");
  app->add_flag("--tensors", options->tensors, "list every tensor");
  app->add_option(
      "--experts", options->experts,
      "instead of a MODEL: tokens per expert and layer, and how even ranks would be, "
      "from a file of `nibble serve --record-expert-load` or a server's http[s]:// address");
  app->add_option("--expert-parallel-size", options->expert_parallel_size,
                  "with --experts, ranks that share them (0: 2, 4, 8...)")
      ->capture_default_str();
  app->add_option("--num-redundant-experts", options->num_redundant_experts,
                  "with --experts, also for a placement by load with so many copies")
      ->capture_default_str();
  AddClientSecurity(app, &options->security);
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

}  // namespace nibble::cli
