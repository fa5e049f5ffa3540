// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Measures every GEMM variant that this CPU runs against the machine's own limits, measured in the
// same run, and prints JSON. README.md has the commands and a table.
//
//   nibble_bench_gemm [--threads N] [--n N] [--k K] [--m 1,4,16,128] [--filter TEXT] [--seconds S]

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "bench/roofline.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_variant.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::bench {
namespace {

using kernels::GemmDesc;
using kernels::PackedWeight;
using kernels::ScaleForm;
using kernels::WeightFormat;

struct Options {
  int threads = 1;
  int64_t n = 4096;
  int64_t k = 14336;
  std::vector<int64_t> m = {1, 4, 16, 128};
  std::string filter;  // of the variant's name
  double seconds = 0.3;
};

// Weights in several copies past the last-level cache, used in turn, as a model's layers are.
constexpr size_t kRotatedBytes = size_t{256} << 20;

struct Subject {
  std::string name;
  Isa isa;
  std::vector<std::unique_ptr<PackedWeight>> copies;
};

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

kernels::Int4Weight MakeInt4(int64_t n, int64_t k) {
  kernels::Int4Weight weight;
  weight.n = n;
  weight.k = k;
  weight.codes.resize(static_cast<size_t>(n * weight.row_bytes()));
  uint32_t state = 1;
  for (uint8_t& code : weight.codes) {
    state = state * 1664525U + 1013904223U;
    code = static_cast<uint8_t>(state >> 24);
  }
  weight.scales.resize(static_cast<size_t>(n * weight.num_groups()));
  for (size_t i = 0; i < weight.scales.size(); ++i) {
    weight.scales[i] = 0.001F * static_cast<float>(8 + i % 9);
  }
  return weight;
}

absl::StatusOr<Subject> Pack(const GemmDesc& desc, Isa isa, const std::vector<uint16_t>& dense,
                             const kernels::Int4Weight& int4, ThreadPool* pool) {
  Subject subject;
  size_t bytes = 0;
  while (bytes < kRotatedBytes) {
    absl::StatusOr<std::unique_ptr<PackedWeight>> weight =
        desc.format == WeightFormat::kDense ? kernels::PackDense(dense.data(), DType::kBf16, desc.n,
                                                                 desc.k, desc.storage, isa, pool)
                                            : kernels::PackInt4(int4, desc.scale_form, isa, pool);
    NIBBLE_RETURN_IF_ERROR(weight.status());
    bytes += (*weight)->size_bytes();
    subject.copies.push_back(*std::move(weight));
  }
  subject.name = subject.copies[0]->variant_name();
  subject.isa = subject.copies[0]->isa();
  return subject;
}

struct Activations {
  std::vector<float> a;
  std::vector<int8_t> a8;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  std::vector<float> d;
};

Activations MakeActivations(int64_t m, int64_t n, int64_t k, ThreadPool* pool) {
  Activations x;
  x.a.resize(static_cast<size_t>(m * k));
  for (size_t i = 0; i < x.a.size(); ++i) x.a[i] = static_cast<float>(i % 17) * 0.1F - 0.8F;
  x.a8.resize(x.a.size());
  x.scales.resize(static_cast<size_t>(m));
  x.sums.resize(static_cast<size_t>(m));
  x.d.resize(static_cast<size_t>(m * n));
  kernels::QuantizeRows(x.a.data(), k, m, k, {x.a8.data(), x.scales.data(), x.sums.data(), k},
                        Isa::kRef, pool);
  return x;
}

struct Timing {
  double median;
  double best;
};

// At least 5 runs and options.seconds.
Timing Measure(const Subject& subject, const Options& options, int64_t m, ThreadPool* pool) {
  Activations x = MakeActivations(m, options.n, options.k, pool);
  const kernels::GemmArgs args = {.m = m,
                                  .a = x.a.data(),
                                  .a_stride = options.k,
                                  .a8 = {x.a8.data(), x.scales.data(), x.sums.data(), options.k},
                                  .d = x.d.data(),
                                  .d_stride = options.n};
  std::vector<double> times;
  double total = 0.0;
  for (size_t i = 0; times.size() < 5 || total < options.seconds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    kernels::Run(*subject.copies[i % subject.copies.size()], args, pool);
    times.push_back(Seconds(std::chrono::steady_clock::now() - start));
    total += times.back();
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0]};
}

void Report(const Subject& subject, const Options& options, int64_t m, Timing timing,
            const Roofline& roofline, bool* first) {
  const PackedWeight& weight = *subject.copies[0];
  const double bytes = static_cast<double>(weight.size_bytes());
  const double ops = 2.0 * static_cast<double>(m * options.n * options.k);
  const bool dense = weight.desc().format == WeightFormat::kDense;
  const double peak = dense ? roofline.float_flop_per_s : roofline.int8_op_per_s;
  fmt::print(
      "{}\n    {{\"variant\": \"{}\", \"m\": {}, \"n\": {}, \"k\": {}, \"median_us\": {:.1f}, "
      "\"best_us\": {:.1f}, "
      "\"gb_per_s\": {:.2f}, \"top_per_s\": {:.4f}, \"share_of_read\": {:.3f}, "
      "\"share_of_peak\": {:.3f}}}",
      *first ? "" : ",", subject.name, m, options.n, options.k, timing.median * 1e6,
      timing.best * 1e6, bytes / timing.best * 1e-9, ops / timing.best * 1e-12,
      bytes / timing.best / roofline.read_bytes_per_s, ops / timing.best / peak);
  std::fflush(stdout);
  *first = false;
}

template <typename T>
bool ParseNumber(std::string_view text, T low, T high, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() && *value >= low &&
         *value <= high;
}

bool ParseList(std::string_view text, std::vector<int64_t>* values) {
  values->clear();
  for (;;) {
    const size_t comma = text.find(',');
    int64_t value = 0;
    if (!ParseNumber<int64_t>(text.substr(0, comma), 1, 1 << 20, &value)) return false;
    values->push_back(value);
    if (comma == std::string_view::npos) return true;
    text.remove_prefix(comma + 1);
  }
}

bool Parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i];
    if (i + 1 == argc) return false;
    const std::string_view value = argv[i + 1];
    bool good = false;
    if (name == "--threads") good = ParseNumber(value, 1, 1024, &options->threads);
    if (name == "--n") good = ParseNumber<int64_t>(value, 1, 1 << 20, &options->n);
    if (name == "--k") good = ParseNumber<int64_t>(value, 1, 1 << 17, &options->k);
    if (name == "--m") good = ParseList(value, &options->m);
    if (name == "--seconds") good = ParseNumber(value, 0.0, 3600.0, &options->seconds);
    if (name == "--filter") {
      options->filter = value;
      good = true;
    }
    if (!good) {
      fmt::print(stderr, "nibble_bench_gemm: cannot use {} {}\n", name, value);
      return false;
    }
  }
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  if (!Parse(argc, argv, &options)) {
    fmt::print(stderr,
               "usage: nibble_bench_gemm [--threads N] [--n N] [--k K] [--m 1,4,16,128] "
               "[--filter TEXT] [--seconds S]\n");
    return 2;
  }
  ThreadPool pool(options.threads);
  const Isa best = HostCpuFeatures().Best();
  const std::vector<uint16_t> dense(static_cast<size_t>(options.n * options.k), 0x3c00);
  const kernels::Int4Weight int4 = MakeInt4(options.n, options.k);
  fmt::print("{{\"machine\": \"{}\", \"threads\": {}, \"results\": [", HostCpuFeatures().name,
             options.threads);
  bool first = true;
  std::string rooflines;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx}) {
    if (isa > best) continue;
    const Roofline roofline = MeasureRoofline(isa, &pool);
    rooflines += fmt::format(
        "{}\n    \"{}\": {{\"read_gb_per_s\": {:.2f}, \"float_tflop_per_s\": {:.4f}, "
        "\"int8_top_per_s\": {:.4f}}}",
        rooflines.empty() ? "" : ",", ToString(isa), roofline.read_bytes_per_s * 1e-9,
        roofline.float_flop_per_s * 1e-12, roofline.int8_op_per_s * 1e-12);
    for (const GemmDesc& form :
         {GemmDesc{.storage = DType::kF32}, GemmDesc{.storage = DType::kBf16},
          GemmDesc{.storage = DType::kF16},
          GemmDesc{.format = WeightFormat::kW4A8, .scale_form = ScaleForm::kFolded},
          GemmDesc{.format = WeightFormat::kW4A8, .scale_form = ScaleForm::kInteger},
          GemmDesc{.format = WeightFormat::kW4A8, .scale_form = ScaleForm::kFloat}}) {
      GemmDesc desc = form;
      desc.n = options.n;
      desc.k = options.k;
      const std::string_view variant = kernels::ChooseVariant(desc, isa)->name;
      if (variant.find(options.filter) == std::string_view::npos) continue;
      if (variant.find(ToString(isa)) == std::string_view::npos) continue;  // a lower one's
      const absl::StatusOr<Subject> subject = Pack(desc, isa, dense, int4, &pool);
      if (!subject.ok()) {
        fmt::print(stderr, "{}: {}\n", variant, std::string(subject.status().message()));
        return 1;
      }
      for (const int64_t m : options.m) {
        Report(*subject, options, m, Measure(*subject, options, m, &pool), roofline, &first);
      }
    }
  }
  fmt::print("\n  ],\n  \"rooflines\": {{{}\n  }}}}\n", rooflines);
  return 0;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
