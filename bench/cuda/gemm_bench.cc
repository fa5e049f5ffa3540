// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "bench/cuda/device_meter.h"
#include "bench/cuda/gemm_variants.h"
#include "bench/cuda_gemm_bench.h"
#include "bench/report.h"

namespace nibble::bench {
namespace {

// Of one variant; `bf16_s` are the seconds of the first one that was bf16, for each number of
// tokens.
absl::Status MeasureVariant(const CudaGemmBenchOptions& options, const CudaGemmShape& shape,
                            const GemmVariant& variant, const DeviceMeter& meter,
                            const DevicePeaks& peaks, std::vector<double>* bf16_s, Report* report) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<GemmSubject> subject, variant.make());
  // As often each.
  const int num_calls = subject->num_calls();
  const int calls = (std::max(options.calls, num_calls) + num_calls - 1) / num_calls * num_calls;
  for (size_t i = 0; i < options.m.size(); ++i) {
    const int64_t m = options.m[i];
    NIBBLE_RETURN_IF_ERROR(subject->Prepare(m));
    NIBBLE_ASSIGN_OR_RETURN(const Timing timing, meter.Measure(calls, [&](int call) {
      return subject->Run(call % num_calls);
    }));
    const double seconds = timing.median_s;
    const double bytes = subject->bytes();
    const double ops = 2.0 * static_cast<double>(shape.NumRows(m) * shape.n * shape.k);
    const double peak = subject->is_int8() ? peaks.int8_op_per_s : peaks.bf16_op_per_s;
    nlohmann::ordered_json row = {
        {"shape", shape.name},
        {"variant", variant.name},
        {"kernel", subject->kernel()},
        {"m", m},
        {"n", shape.n},
        {"k", shape.k},
        {"bytes", static_cast<int64_t>(bytes)},
        {"runs", timing.runs},
        {"median_us", Rounded(seconds * 1e6)},
        {"best_us", Rounded(timing.best_s * 1e6)},
        {"gb_per_s", Rounded(bytes / seconds * 1e-9)},
        {"share_of_read", Rounded(bytes / seconds / peaks.read_bytes_per_s)},
        {"top_per_s", Rounded(ops / seconds * 1e-12)},
        {"share_of_peak", Rounded(ops / seconds / peak)}};
    if (variant.name.starts_with("bf16") && (*bf16_s)[i] == 0.0) (*bf16_s)[i] = seconds;
    if ((*bf16_s)[i] > 0.0) row["times_bf16"] = Rounded((*bf16_s)[i] / seconds);
    report->Add(std::move(row));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunCudaGemmBench(const CudaGemmBenchOptions& options,
                                                        ThreadPool* pool, std::FILE* table) {
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMeter meter,
                          DeviceMeter::Create(0, {.seconds = options.seconds,
                                                  .min_runs = options.min_runs,
                                                  .rotated_bytes = options.rotated_bytes,
                                                  .peak_rounds = options.peak_rounds}));
  const auto lt = kernels::cuda::CublasLt::Open();
  const GemmSetup setup = {.meter = &meter,
                           .lt = lt.ok() ? lt->get() : nullptr,
                           .pool = pool,
                           .max_tokens = *std::max_element(options.m.begin(), options.m.end())};
  NIBBLE_ASSIGN_OR_RETURN(const DevicePeaks peaks, meter.MeasurePeaks());
  Report report("gemm",
                {{"shape", "shape", 16},
                 {"variant", "variant", 15},
                 {"kernel", "kernel", 22},
                 {"m", "m", 6},
                 {"median_us", "us", 10, 1},
                 {"gb_per_s", "GB/s", 8, 0},
                 {"share_of_read", "of read", 9, 3},
                 {"top_per_s", "TOP/s", 8, 1},
                 {"share_of_peak", "of peak", 9, 3},
                 {"times_bf16", "x bf16", 8, 2}},
                table);
  bool any = false;
  for (const std::string& name : options.shapes) {
    NIBBLE_ASSIGN_OR_RETURN(const CudaGemmShape shape, FindCudaGemmShape(name));
    std::vector<double> bf16_s(options.m.size(), 0.0);
    for (const GemmVariant& variant :
         shape.HasExperts() ? ExpertVariants(shape, setup) : DenseVariants(shape, setup)) {
      if (variant.name.find(options.filter) == std::string::npos) continue;
      any = true;
      NIBBLE_RETURN_IF_ERROR(
          MeasureVariant(options, shape, variant, meter, peaks, &bf16_s, &report));
    }
  }
  if (!any) {
    return InvalidArgument("--filter '{}': no variant has it in its name", options.filter);
  }
  nlohmann::ordered_json members = {{"device", meter.Describe()}};
  if (!lt.ok()) members["cublaslt"] = std::string(lt.status().message());
  return report.Finish(pool->num_threads(), ToJson(peaks), members);
}

}  // namespace nibble::bench
