// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble bench: measurements, JSON on standard output. Each command returns the exit status.
#pragma once

#include <string>

#include "bench/activation_bench.h"
#include "bench/allreduce_bench.h"
#include "bench/attention_bench.h"
#include "bench/codec_bench.h"
#include "bench/cuda_allreduce_bench.h"
#include "bench/cuda_attention_bench.h"
#include "bench/cuda_codec_bench.h"
#include "bench/cuda_gemm_bench.h"
#include "bench/gemm_bench.h"
#include "bench/grouped_gemm_bench.h"
#include "bench/layer_bench.h"
#include "bench/model_bench.h"
#include "bench/moe_bench.h"
#include "bench/moe_layout_bench.h"
#include "bench/step_channel_bench.h"
#include "server/cli/load_command.h"
#include "server/config.h"

namespace nibble::cli {

struct BenchOptions {
  int threads = 0;  // of the commands that load no model; 0: all CPUs of this process
  bench::GemmBenchOptions gemm;
  std::string gemm_device = "cpu";  // cpu or cuda
  bench::CudaGemmBenchOptions cuda_gemm;
  bench::GroupedGemmBenchOptions grouped_gemm;
  bench::LayerBenchOptions layer;
  bench::AttentionBenchOptions attention;
  std::string attention_device = "cpu";
  bench::CudaAttentionBenchOptions cuda_attention;
  bench::CodecBenchOptions codec;
  std::string codec_device = "cpu";
  bench::CudaCodecBenchOptions cuda_codec;
  bench::AllReduceBenchOptions allreduce;
  std::string allreduce_device = "cpu";
  bench::CudaAllReduceBenchOptions cuda_allreduce;
  bench::MoeBenchOptions moe;
  bench::MoeLayoutBenchOptions moe_layout;
  server::ModelOptions model;  // of activations, decode, prefill and step-channel
  std::string data;            // text file, of activations
  bench::ActivationBenchOptions activations;
  bench::DecodeBenchOptions decode;
  bench::PrefillBenchOptions prefill;
  bench::StepChannelBenchOptions step_channel;
  LoadCommandOptions load;                                      // of serve, sweep
  server::ParallelOptions parallel{.tensor_parallel_size = 2};  // of activations, step-channel
};

int RunBenchGemm(const BenchOptions& options);
int RunBenchGroupedGemm(const BenchOptions& options);
int RunBenchLayer(const BenchOptions& options);
int RunBenchAttention(const BenchOptions& options);
int RunBenchCodec(const BenchOptions& options);
int RunBenchAllReduce(const BenchOptions& options);
int RunBenchMoe(const BenchOptions& options);
int RunBenchMoeLayout(const BenchOptions& options);
int RunBenchActivations(const BenchOptions& options);
int RunBenchDecode(const BenchOptions& options);
int RunBenchPrefill(const BenchOptions& options);
int RunBenchStepChannel(const BenchOptions& options);

}  // namespace nibble::cli
