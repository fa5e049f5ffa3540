// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// --device cuda of nibble bench gemm, attention, codec and allreduce: other defaults than the CPU's
// for what both take, and options of one of them that the other refuses.
#include <initializer_list>
#include <string>
#include <vector>

#include "fmt/ranges.h"

#include "CLI/CLI.hpp"
#include "server/cli/option_list.h"
#include "server/cli/options.h"

namespace nibble::cli {
namespace {

void AddDevice(CLI::App* app, std::string* device) {
  app->add_option("--device", *device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
}

void Refuse(const CLI::App* app, std::initializer_list<const char*> names, const char* device) {
  for (const char* const name : names) {
    if (app->count(name) > 0) {
      throw CLI::ValidationError(name, fmt::format("goes with --device {}", device));
    }
  }
}

template <typename T>
void TakeIfGiven(const CLI::App* app, const char* name, const T& value, T* to) {
  if (app->count(name) > 0) *to = value;
}

// --heads, --kv-heads and --head-dim as shapes.
std::vector<std::string> HeadShapes(const bench::AttentionBenchOptions& options,
                                    bool has_head_dim) {
  std::vector<std::string> shapes;
  for (const int64_t head_dim : has_head_dim ? options.head_dims : std::vector<int64_t>{128}) {
    shapes.push_back(fmt::format("{}x{}x{}", options.num_heads, options.num_kv_heads, head_dim));
  }
  return shapes;
}

std::string Text(const std::string& value) { return value; }
std::string Text(int64_t value) { return fmt::format("{}", value); }
std::string Text(double value) { return fmt::format("{}", value); }
template <typename T>
std::string Text(const std::vector<T>& values) {
  return fmt::format("{}", fmt::join(values, ","));
}

// Help shows the CPU's defaults by itself.
template <typename T>
void TellDefault(CLI::App* app, const char* name, const T& value) {
  CLI::Option* const option = app->get_option(name);
  option->description(
      fmt::format("{}; with --device cuda: {}", option->get_description(), Text(value)));
}

}  // namespace

void AddSave(CLI::App* app, std::string* file) {
  app->add_option(
      "--save", *file,
      "a file that has what is printed at the end, written anew after each row: of a run "
      "that is ended what it measured");
}

void AddCudaGemm(CLI::App* app, BenchOptions* options) {
  AddDevice(app, &options->gemm_device);
  bench::CudaGemmBenchOptions* const cuda = &options->cuda_gemm;
  AddList(app, "--shapes", &cuda->shapes,
          "of weights, on cuda: names of models' layers, NxK, or NxKxExT for T of E experts");
  AddSave(app, &cuda->save);
  TellDefault(app, "--n", std::string("--shapes"));
  TellDefault(app, "--k", std::string("--shapes"));
  TellDefault(app, "--m", cuda->m);
  TellDefault(app, "--filter", bench::CudaGemmVariantNames());
  TellDefault(app, "--seconds", cuda->seconds);
  app->parse_complete_callback([=] {
    if (options->gemm_device == "cpu") return Refuse(app, {"--shapes", "--save"}, "cuda");
    const bench::GemmBenchOptions& given = options->gemm;
    if (app->count("--n") + app->count("--k") > 0) {
      if (app->count("--shapes") > 0) {
        throw CLI::ValidationError("--shapes",
                                   "names what --n and --k would: give one or the other");
      }
      cuda->shapes = {fmt::format("{}x{}", given.n, given.k)};
    }
    TakeIfGiven(app, "--m", given.m, &cuda->m);
    TakeIfGiven(app, "--seconds", given.seconds, &cuda->seconds);
    cuda->filter = given.filter;
  });
}

void AddCudaAttention(CLI::App* app, BenchOptions* options) {
  AddDevice(app, &options->attention_device);
  bench::CudaAttentionBenchOptions* const cuda = &options->cuda_attention;
  AddList(app, "--shapes", &cuda->shapes,
          "of heads, on cuda: 8b or 70b (Llama 3), or HEADSxKV_HEADSxHEAD_DIM");
  AddSave(app, &cuda->save);
  for (const char* const name : {"--heads", "--kv-heads", "--head-dim"}) {
    TellDefault(app, name, std::string("--shapes"));
  }
  TellDefault(app, "--kv-cache-dtype", cuda->dtypes);
  TellDefault(app, "--batch", cuda->sequences);
  TellDefault(app, "--context", cuda->contexts);
  TellDefault(app, "--prompt", cuda->prefills);
  TellDefault(app, "--max-cache-bytes", cuda->max_cache_bytes);
  TellDefault(app, "--seconds", cuda->meter.seconds);
  app->parse_complete_callback([=] {
    if (options->attention_device == "cpu") return Refuse(app, {"--shapes", "--save"}, "cuda");
    Refuse(app, {"--threads"}, "cpu");
    const bench::AttentionBenchOptions& given = options->attention;
    if (app->count("--heads") + app->count("--kv-heads") + app->count("--head-dim") > 0) {
      if (app->count("--shapes") > 0) {
        throw CLI::ValidationError(
            "--shapes",
            "names what --heads, --kv-heads and --head-dim would: give one or the other");
      }
      cuda->shapes = HeadShapes(given, app->count("--head-dim") > 0);
    }
    TakeIfGiven(app, "--kv-cache-dtype", given.dtypes, &cuda->dtypes);
    TakeIfGiven(app, "--batch", given.sequences, &cuda->sequences);
    TakeIfGiven(app, "--context", given.contexts, &cuda->contexts);
    TakeIfGiven(app, "--prompt", given.prefills, &cuda->prefills);
    TakeIfGiven(app, "--block-size", given.block_size, &cuda->block_size);
    TakeIfGiven(app, "--max-cache-bytes", given.max_cache_bytes, &cuda->max_cache_bytes);
    TakeIfGiven(app, "--seconds", given.seconds, &cuda->meter.seconds);
    cuda->scattered = given.scattered;
  });
}

void AddCudaCodec(CLI::App* app, BenchOptions* options) {
  AddDevice(app, &options->codec_device);
  bench::CudaCodecBenchOptions* const cuda = &options->cuda_codec;
  AddSave(app, &cuda->save);
  TellDefault(app, "--group-size", cuda->codecs.group_sizes);
  TellDefault(app, "--variant", cuda->codecs.variants);
  TellDefault(app, "--rows", cuda->codecs.rows);
  TellDefault(app, "--seconds", cuda->meter.seconds);
  app->parse_complete_callback([=] {
    if (options->codec_device == "cpu") return Refuse(app, {"--save"}, "cuda");
    Refuse(app, {"--threads"}, "cpu");
    const bench::CodecBenchOptions& given = options->codec;
    TakeIfGiven(app, "--bits", given.bits, &cuda->codecs.bits);
    TakeIfGiven(app, "--group-size", given.group_sizes, &cuda->codecs.group_sizes);
    TakeIfGiven(app, "--variant", given.variants, &cuda->codecs.variants);
    TakeIfGiven(app, "--rows", given.rows, &cuda->codecs.rows);
    TakeIfGiven(app, "--row-size", given.row_size, &cuda->codecs.row_size);
    TakeIfGiven(app, "--ranks", given.ranks, &cuda->codecs.ranks);
    TakeIfGiven(app, "--seconds", given.seconds, &cuda->meter.seconds);
  });
}

void AddCudaAllReduce(CLI::App* app, BenchOptions* options) {
  AddDevice(app, &options->allreduce_device);
  bench::CudaAllReduceBenchOptions* const cuda = &options->cuda_allreduce;
  AddSave(app, &cuda->save);
  TellDefault(app, "--ranks", std::string("one on each device, 8 at most"));
  TellDefault(app, "--transport", std::string("auto, p2p, nccl or host (default auto)"));
  TellDefault(app, "--sizes", cuda->sizes);
  TellDefault(app, "--codecs",
              Text(cuda->codecs) + ", beside bf16 and NCCL, which are always measured");
  TellDefault(app, "--seconds", cuda->meter.seconds);
  app->parse_complete_callback([=] {
    if (options->allreduce_device == "cpu") return Refuse(app, {"--save"}, "cuda");
    Refuse(app, {"--hosts", "--threads", "--rank", "--rendezvous", "--bind-address"}, "cpu");
    const bench::AllReduceBenchOptions& given = options->allreduce;
    TakeIfGiven(app, "--ranks", given.ranks, &cuda->ranks);
    TakeIfGiven(app, "--transport", given.transport, &cuda->transport);
    TakeIfGiven(app, "--sizes", given.sizes, &cuda->sizes);
    TakeIfGiven(app, "--row-size", given.row_size, &cuda->row_size);
    TakeIfGiven(app, "--codecs", given.codecs, &cuda->codecs);
    TakeIfGiven(app, "--seconds", given.seconds, &cuda->meter.seconds);
    cuda->group_size = given.group_size;
    cuda->log2_scales = given.log2_scales;
    cuda->spikes = given.spikes;
    cuda->rotation = given.rotation;
  });
}

}  // namespace nibble::cli
