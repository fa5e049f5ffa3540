// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/gemm_bench.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "nlohmann/json.hpp"

#include "bench/gemm_subject.h"
#include "bench/limits.h"
#include "bench/report.h"
#include "bench/roofline.h"
#include "bench/timing.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::bench {
namespace {

using kernels::GemmDesc;
using kernels::PackedWeight;

struct Subject {
  Isa isa;
  std::vector<std::unique_ptr<PackedWeight>> copies;
};

absl::StatusOr<Subject> MakeSubject(const GemmDesc& desc, int64_t rotated_bytes, Isa isa,
                                    ThreadPool* pool) {
  Subject subject = {isa, {}};
  for (int64_t bytes = 0; bytes < rotated_bytes;) {
    NIBBLE_ASSIGN_OR_RETURN(auto weight, PackRandomWeight(desc, isa, pool));
    bytes += static_cast<int64_t>(weight->size_bytes());
    subject.copies.push_back(std::move(weight));
  }
  return subject;
}

// The unit that bounds many rows of this format.
double ComputePeak(const GemmDesc& desc, Isa isa, const Roofline& roofline) {
  if (kernels::TakesInt8(desc.format)) return roofline.int8_op_per_s;
  const bool tiles = isa == Isa::kAmx && desc.storage == DType::kBf16;
  return tiles ? roofline.amx_bf16.best : roofline.float_flop_per_s;
}

nlohmann::ordered_json MeasureRow(const Subject& subject, int64_t m, double seconds,
                                  RooflineMeter* meter, ThreadPool* pool) {
  const PackedWeight& weight = *subject.copies[0];
  const GemmDesc& desc = weight.desc();
  GemmActivations activations(m, desc.n, desc.k, pool);
  const kernels::GemmArgs args = activations.args();
  const Roofline roofline = meter->Measure(subject.isa);
  const Timing timing = Measure(seconds, 5, [&](int64_t i) {
    kernels::Run(*subject.copies[static_cast<size_t>(i) % subject.copies.size()], args, pool);
  });
  const auto bytes = static_cast<double>(weight.size_bytes());
  const double ops = 2.0 * static_cast<double>(m * desc.n * desc.k);
  const double peak = ComputePeak(desc, subject.isa, roofline);
  return {{"variant", weight.variant_name()},
          {"m", m},
          {"n", desc.n},
          {"k", desc.k},
          {"runs", timing.runs},
          {"median_us", Rounded(timing.median_s * 1e6)},
          {"best_us", Rounded(timing.best_s * 1e6)},
          {"gb_per_s", Rounded(bytes / timing.median_s * 1e-9)},
          {"top_per_s", Rounded(ops / timing.median_s * 1e-12)},
          {"share_of_read", Rounded(bytes / timing.median_s / roofline.read_bytes_per_s)},
          {"share_of_peak", Rounded(ops / timing.median_s / peak)},
          {"best_share_of_read", Rounded(bytes / timing.best_s / roofline.read_bytes_per_s)},
          {"best_share_of_peak", Rounded(ops / timing.best_s / peak)},
          {"peaks", ToJson(roofline)}};
}

}  // namespace

void GemmBenchOptions::Validate(std::vector<std::string>* violations) const {
  CheckLimits("--n", {n}, 1, 1 << 20, violations);
  CheckLimits("--k", {k}, 1, 1 << 17, violations);
  CheckLimits("--m", m, 1, 1 << 16, violations);
  CheckNumber("--seconds", seconds, 0.0, 3600.0, violations);
}

absl::StatusOr<nlohmann::ordered_json> RunGemmBench(const GemmBenchOptions& options,
                                                    ThreadPool* pool, std::FILE* table) {
  Report report("gemm",
                {{"variant", "variant", 26},
                 {"m", "m", 6},
                 {"median_us", "us", 11, 1},
                 {"gb_per_s", "GB/s", 8, 2},
                 {"share_of_read", "of read", 9, 3},
                 {"top_per_s", "TOP/s", 8, 3},
                 {"share_of_peak", "of peak", 9, 3}},
                table);
  RooflineMeter meter(pool);
  const Isa best = HostCpuFeatures().Best();
  nlohmann::ordered_json peaks = nlohmann::ordered_json::object();
  bool any = false;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx}) {
    if (isa > best) continue;
    for (const WeightKind& kind : WeightKinds()) {
      GemmDesc desc = kind.desc;
      desc.n = options.n;
      desc.k = options.k;
      const kernels::GemmVariant* variant = kernels::ChooseVariant(desc, isa);
      if (variant->isa != isa) continue;  // a lower one's, or the reference
      if (variant->name.find(options.filter) == std::string_view::npos) continue;
      any = true;
      NIBBLE_ASSIGN_OR_RETURN(const Subject subject,
                              MakeSubject(desc, options.rotated_bytes, isa, pool));
      peaks[std::string(ToString(isa))] = ToJson(meter.Measure(isa));
      for (const int64_t m : options.m) {
        report.Add(MeasureRow(subject, m, options.seconds, &meter, pool));
      }
    }
  }
  if (!any) {
    return InvalidArgument("--filter '{}': no variant that this CPU ({}) runs has it in its name",
                           options.filter, ToString(best));
  }
  return report.Finish(pool->num_threads(), std::move(peaks));
}

}  // namespace nibble::bench
