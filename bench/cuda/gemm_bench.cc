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

class ShapeBench {
 public:
  ShapeBench(const GemmRun& run, const CudaGemmShape& shape, Report* report)
      : options_(*run.options),
        shape_(shape),
        meter_(*run.meter),
        peaks_(*run.peaks),
        report_(report),
        bf16_(options_.m.size()) {}

  void Run(const GemmVariant& variant) {
    const auto subject = variant.make();
    if (!subject.ok()) {
      AddError({{"shape", shape_.name}, {"variant", variant.name}}, subject.status());
      return;
    }
    for (size_t i = 0; i < options_.m.size(); ++i) {
      const absl::Status status = RunTokens(variant, i, subject->get());
      if (status.ok()) continue;
      AddError({{"shape", shape_.name}, {"variant", variant.name}, {"m", options_.m[i]}}, status);
    }
  }

 private:
  absl::Status RunTokens(const GemmVariant& variant, size_t i, GemmSubject* subject) {
    const int64_t m = options_.m[i];
    // As often each.
    const int num_calls = subject->num_calls();
    const int calls = (std::max(options_.calls, num_calls) + num_calls - 1) / num_calls * num_calls;
    NIBBLE_RETURN_IF_ERROR(subject->Prepare(m));
    NIBBLE_ASSIGN_OR_RETURN(const Timing timing, meter_.Measure(calls, [&](int call) {
      return subject->Run(call % num_calls);
    }));
    const double seconds = timing.median_s;
    const double bytes = subject->bytes();
    const double ops = 2.0 * static_cast<double>(shape_.NumRows(m) * shape_.n * shape_.k);
    const double peak = subject->is_int8() ? peaks_.int8_op_per_s : peaks_.bf16_op_per_s;
    nlohmann::ordered_json row = {
        {"shape", shape_.name},
        {"variant", variant.name},
        {"kernel", subject->kernel()},
        {"m", m},
        {"n", shape_.n},
        {"k", shape_.k},
        {"bytes", static_cast<int64_t>(bytes)},
        {"runs", timing.runs},
        {"median_us", Rounded(seconds * 1e6)},
        {"best_us", Rounded(timing.best_s * 1e6)},
        {"gb_per_s", Rounded(bytes / seconds * 1e-9)},
        {"share_of_read", Rounded(bytes / seconds / peaks_.read_bytes_per_s)},
        {"top_per_s", Rounded(ops / seconds * 1e-12)},
        {"share_of_peak", Rounded(ops / seconds / peak)}};
    if (variant.name.starts_with("bf16") && bf16_[i].seconds == 0.0) {
      bf16_[i] = {seconds, variant.name};
    }
    if (bf16_[i].seconds > 0.0) {
      row["times_bf16"] = Rounded(bf16_[i].seconds / seconds);
      row["times_bf16_of"] = bf16_[i].variant;
    }
    report_->Add(std::move(row));
    return absl::OkStatus();
  }

  void AddError(nlohmann::ordered_json row, const absl::Status& status) {
    row["error"] = status.ToString();
    report_->Add(std::move(row));
  }

  const CudaGemmBenchOptions& options_;
  const CudaGemmShape& shape_;
  const DeviceMeter& meter_;
  const DevicePeaks& peaks_;
  Report* const report_;
  // The first variant of bf16 that was measured, for each number of tokens.
  struct Bf16 {
    double seconds = 0.0;
    std::string variant;
  };
  std::vector<Bf16> bf16_;
};

}  // namespace

void MeasureVariants(const GemmRun& run, const CudaGemmShape& shape,
                     const std::vector<GemmVariant>& variants, Report* report) {
  ShapeBench bench(run, shape, report);
  for (const GemmVariant& variant : variants) bench.Run(variant);
}

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
  nlohmann::ordered_json members = {{"device", meter.Describe()}};
  if (!lt.ok()) members["cublaslt"] = std::string(lt.status().message());
  NIBBLE_RETURN_IF_ERROR(report.SaveTo(options.save, pool->num_threads(), ToJson(peaks), members));
  bool any = false;
  for (const std::string& name : options.shapes) {
    NIBBLE_ASSIGN_OR_RETURN(const CudaGemmShape shape, FindCudaGemmShape(name));
    std::vector<GemmVariant> variants =
        shape.HasExperts() ? ExpertVariants(shape, setup) : DenseVariants(shape, setup);
    std::erase_if(variants, [&](const GemmVariant& variant) {
      return variant.name.find(options.filter) == std::string::npos;
    });
    any |= !variants.empty();
    MeasureVariants({.options = &options, .meter = &meter, .peaks = &peaks}, shape, variants,
                    &report);
  }
  if (!any) {
    return Unavailable("--filter '{}': no variant that there is has it in its name{}",
                       options.filter, lt.ok() ? "" : ", " + std::string(lt.status().message()));
  }
  return report.Finish(pool->num_threads(), ToJson(peaks), members);
}

}  // namespace nibble::bench
