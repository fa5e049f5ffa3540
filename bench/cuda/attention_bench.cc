// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/cuda/buffer.h"
#include "bench/cache_fill.h"
#include "bench/cuda/device_meter.h"
#include "bench/cuda/random_on_device.h"
#include "bench/cuda_attention_bench.h"
#include "bench/report.h"
#include "kernels/attention/cuda/paged_attention.h"

namespace nibble::bench {
namespace {

using kernels::cuda::AttentionBackend;
using kernels::cuda::DeviceAttention;
using kernels::cuda::KvCacheView;

constexpr int64_t kMaxCopies = 64;

constexpr float kScale = 1.0F / 128;  // of int8

struct Case {
  CudaAttentionShape heads;
  DType dtype = DType::kBf16;
  int64_t num_seqs = 1;
  int64_t context = 0;
  int64_t num_new = 1;  // of each sequence

  bool is_decode() const { return num_new == 1; }
  int64_t columns() const { return heads.num_heads * heads.head_dim; }
  int64_t num_tokens() const { return num_seqs * num_new; }
  // What a run must read of the cache.
  int64_t bytes() const {
    const int64_t row = heads.head_dim * static_cast<int64_t>(SizeOf(dtype)) +
                        (dtype == DType::kI8 ? static_cast<int64_t>(sizeof(float)) : 0);
    return 2 * num_seqs * context * heads.num_kv_heads * row;
  }
  // Multiplications and additions of pairs of a query and a key that it sees.
  double flop() const {
    const auto tokens = static_cast<double>(num_new);
    const double pairs = tokens * (static_cast<double>(context) - 0.5 * (tokens - 1.0));
    return 4.0 * pairs * static_cast<double>(num_seqs * columns());
  }
};

std::vector<Case> CasesOf(const CudaAttentionBenchOptions& options,
                          const CudaAttentionShape& heads) {
  std::vector<Case> cases;
  for (const std::string& name : options.dtypes) {
    const DType dtype = *ParseCacheDType(name);
    for (const int64_t context : options.contexts) {
      for (const int64_t num_seqs : options.sequences) {
        cases.push_back({heads, dtype, num_seqs, context, 1});
      }
    }
    for (const int64_t length : options.prefills) {
      cases.push_back({heads, dtype, 1, length, length});
    }
  }
  return cases;
}

// The device's memory of a case: some caches, queries, output.
class Subject {
 public:
  static absl::StatusOr<std::unique_ptr<Subject>> Create(const CudaAttentionBenchOptions& options,
                                                         const Case& shape,
                                                         const DeviceMeter& meter) {
    auto subject = std::make_unique<Subject>();
    subject->shape_ = shape;
    subject->max_blocks_ = (shape.context + options.block_size - 1) / options.block_size;
    subject->num_copies_ = std::clamp<int64_t>(
        (meter.rotated_bytes() + shape.bytes() - 1) / shape.bytes(), 1, kMaxCopies);
    NIBBLE_RETURN_IF_ERROR(subject->Allocate(options, meter.stream()));
    subject->MakeStep(options.scattered);
    return subject;
  }

  int64_t num_copies() const { return num_copies_; }

  absl::StatusOr<std::unique_ptr<DeviceAttention>> Plan(AttentionBackend backend,
                                                        const DeviceMeter& meter) const {
    NIBBLE_ASSIGN_OR_RETURN(auto attention,
                            DeviceAttention::Create({.num_heads = shape_.heads.num_heads,
                                                     .num_kv_heads = shape_.heads.num_kv_heads,
                                                     .head_dim = shape_.heads.head_dim,
                                                     .block_size = view_.block_size,
                                                     .kv_dtype = shape_.dtype},
                                                    {.max_tokens = shape_.num_tokens(),
                                                     .max_seqs = shape_.num_seqs,
                                                     .max_blocks_per_seq = max_blocks_},
                                                    meter.caps(), backend));
    // As models decode: a graph's launches. The library has none.
    const bool as_graph = shape_.is_decode() && backend == AttentionBackend::kNibble;
    NIBBLE_RETURN_IF_ERROR(attention->Plan({.num_seqs = shape_.num_seqs,
                                            .query_start = query_start_.data(),
                                            .context_lens = context_lens_.data(),
                                            .block_tables = block_tables_.data(),
                                            .max_blocks_per_seq = max_blocks_,
                                            .graph_seqs = as_graph ? shape_.num_seqs : 0},
                                           meter.stream()));
    NIBBLE_RETURN_IF_ERROR(meter.Synchronize());
    return attention;
  }

  absl::Status Run(DeviceAttention* attention, int64_t call, cudaStream_t stream) const {
    KvCacheView view = view_;
    const int64_t copy = call % num_copies_;
    view.keys = keys_.data() + copy * copy_words_;
    view.values = values_.data() + copy * copy_words_;
    if (scales_.data() != nullptr) {
      view.key_scales = scales_.data() + 2 * copy * copy_scales_;
      view.value_scales = view.key_scales + copy_scales_;
    }
    return attention->Run(
        view,
        {.q = {.data = q_.data(), .dtype = DType::kBf16, .stride = shape_.columns()},
         .out = {.data = out_.data(), .dtype = DType::kBf16, .stride = shape_.columns()},
         .scale = 1.0F / std::sqrt(static_cast<float>(shape_.heads.head_dim))},
        stream);
  }

 private:
  absl::Status Allocate(const CudaAttentionBenchOptions& options, cudaStream_t stream) {
    view_ = {.dtype = shape_.dtype,
             .num_blocks = max_blocks_ * shape_.num_seqs,
             .num_kv_heads = shape_.heads.num_kv_heads,
             .block_size = options.block_size,
             .head_dim = shape_.heads.head_dim};
    const int64_t rows = view_.num_blocks * view_.num_kv_heads * view_.block_size;
    const bool is_int8 = view_.dtype == DType::kI8;
    copy_words_ = rows * view_.head_dim / (is_int8 ? 2 : 1);
    const RandomKind kind = is_int8 ? RandomKind::kBits : RandomKind::kBf16;
    NIBBLE_ASSIGN_OR_RETURN(keys_, RandomOnDevice(kind, num_copies_ * copy_words_, 1, stream));
    NIBBLE_ASSIGN_OR_RETURN(values_, RandomOnDevice(kind, num_copies_ * copy_words_, 2, stream));
    if (is_int8) {
      copy_scales_ = rows;
      NIBBLE_ASSIGN_OR_RETURN(
          scales_,
          gpu::Upload(std::vector<float>(static_cast<size_t>(2 * num_copies_ * rows), kScale),
                      stream));
    }
    const int64_t count = shape_.num_tokens() * shape_.columns();
    NIBBLE_ASSIGN_OR_RETURN(q_, RandomOnDevice(RandomKind::kBf16, count, 3, stream));
    NIBBLE_ASSIGN_OR_RETURN(out_, gpu::DeviceBuffer<uint16_t>::Create(static_cast<size_t>(count)));
    return absl::OkStatus();
  }

  void MakeStep(bool scattered) {
    for (int64_t seq = 0; seq <= shape_.num_seqs; ++seq) {
      query_start_.push_back(static_cast<int32_t>(seq * shape_.num_new));
    }
    context_lens_.assign(static_cast<size_t>(shape_.num_seqs),
                         static_cast<int32_t>(shape_.context));
    if (scattered) {
      block_tables_ = ShuffledBlocks(view_.num_blocks);
    } else {
      block_tables_.resize(static_cast<size_t>(view_.num_blocks));
      std::iota(block_tables_.begin(), block_tables_.end(), 0);
    }
  }

  Case shape_;
  int64_t max_blocks_ = 0;
  int64_t num_copies_ = 1;
  int64_t copy_words_ = 0;   // 16 bits each: of keys, and of values
  int64_t copy_scales_ = 0;  // of keys, and of values
  KvCacheView view_;         // but for its memory
  gpu::DeviceBuffer<uint16_t> keys_;
  gpu::DeviceBuffer<uint16_t> values_;
  gpu::DeviceBuffer<float> scales_;  // [copies, 2, copy_scales_]: of keys, of values
  gpu::DeviceBuffer<uint16_t> q_;
  gpu::DeviceBuffer<uint16_t> out_;
  std::vector<int32_t> query_start_;
  std::vector<int32_t> context_lens_;
  std::vector<int32_t> block_tables_;  // [num_seqs, max_blocks]
};

nlohmann::ordered_json Describe(const Case& shape) {
  return {{"shape", shape.heads.name},
          {"dtype", std::string(ToString(shape.dtype))},
          {"phase", shape.is_decode() ? "decode" : "prefill"},
          {"sequences", shape.num_seqs},
          {"context", shape.context},
          {"new_tokens", shape.num_new},
          {"heads", shape.heads.num_heads},
          {"kv_heads", shape.heads.num_kv_heads},
          {"head_dim", shape.heads.head_dim}};
}

class Bench {
 public:
  Bench(const CudaAttentionBenchOptions& options, DeviceMeter meter, const DevicePeaks& peaks,
        std::FILE* table)
      : options_(options),
        meter_(std::move(meter)),
        peaks_(peaks),
        report_("attention",
                {{"shape", "shape", 12},
                 {"dtype", "cache", 9},
                 {"backend", "kernel", 11},
                 {"sequences", "batch", 6},
                 {"context", "context", 8},
                 {"new_tokens", "new", 6},
                 {"median_us", "us", 10, 1},
                 {"gb_per_s", "GB/s", 8, 0},
                 {"share_of_read", "of read", 8, 3},
                 {"tflop_per_s", "TFLOP/s", 8, 1},
                 {"share_of_peak", "of peak", 8, 3},
                 {"times_flashinfer", "x flashinfer", 13, 2}},
                table) {}

  absl::Status Begin() {
    return report_.SaveTo(options_.save, 1, ToJson(peaks_), {{"device", meter_.Describe()}});
  }

  // Rows of both kernels, or one with `error`.
  void RunCase(const Case& shape) {
    if (shape.bytes() > options_.max_cache_bytes) {
      nlohmann::ordered_json row = Describe(shape);
      row["left_out"] = fmt::format("{} bytes of cache, the limit is {}", shape.bytes(),
                                    options_.max_cache_bytes);
      report_.Add(std::move(row));
      ++num_good_;
      return;
    }
    const absl::Status status = Measure(shape);
    if (status.ok()) {
      ++num_good_;
      return;
    }
    if (error_.ok()) error_ = status;
    nlohmann::ordered_json row = Describe(shape);
    row["error"] = status.ToString();
    report_.Add(std::move(row));
  }

  // The first one's, where every case failed.
  absl::Status error() const { return num_good_ > 0 ? absl::OkStatus() : error_; }

  nlohmann::ordered_json Finish() {
    nlohmann::ordered_json members = {{"device", meter_.Describe()}};
    if (!why_no_flashinfer_.empty()) members["flashinfer"] = why_no_flashinfer_;
    return report_.Finish(1, ToJson(peaks_), members);
  }

 private:
  absl::Status Measure(const Case& shape) {
    NIBBLE_ASSIGN_OR_RETURN(const auto subject, Subject::Create(options_, shape, meter_));
    // The library first: our row names the ratio. Its failure is not ours.
    double flashinfer_s = 0.0;
    const auto flashinfer = subject->Plan(AttentionBackend::kFlashInferDecode, meter_);
    absl::Status library = flashinfer.status();
    if (library.ok()) {
      const auto timing = Time(*subject, flashinfer->get());
      library = timing.status();
      if (timing.ok()) {
        flashinfer_s = timing->median_s;
        AddRow(shape, (*flashinfer)->name(), *timing, 0.0);
      }
    } else if (absl::IsUnimplemented(library)) {
      if (shape.dtype == DType::kBf16) why_no_flashinfer_ = std::string(library.message());
      library = absl::OkStatus();
    }
    NIBBLE_ASSIGN_OR_RETURN(const auto nibble, subject->Plan(AttentionBackend::kNibble, meter_));
    NIBBLE_ASSIGN_OR_RETURN(const Timing timing, Time(*subject, nibble.get()));
    AddRow(shape, nibble->name(), timing, flashinfer_s);
    return library;
  }

  absl::StatusOr<Timing> Time(const Subject& subject, DeviceAttention* attention) const {
    const int calls = std::max(options_.calls, static_cast<int>(subject.num_copies()));
    return meter_.Measure(calls,
                          [&](int call) { return subject.Run(attention, call, meter_.stream()); });
  }

  void AddRow(const Case& shape, const std::string& backend, const Timing& timing,
              double flashinfer_s) {
    const double bytes_per_s = static_cast<double>(shape.bytes()) / timing.median_s;
    const double flop_per_s = shape.flop() / timing.median_s;
    nlohmann::ordered_json row = Describe(shape);
    row["backend"] = backend;
    row["runs"] = timing.runs;
    row["median_us"] = Rounded(timing.median_s * 1e6);
    row["best_us"] = Rounded(timing.best_s * 1e6);
    row["gb_per_s"] = Rounded(bytes_per_s * 1e-9);
    row["share_of_read"] = Rounded(bytes_per_s / peaks_.read_bytes_per_s);
    row["tflop_per_s"] = Rounded(flop_per_s * 1e-12);
    row["share_of_peak"] = Rounded(flop_per_s / peaks_.bf16_op_per_s);
    if (flashinfer_s > 0.0) row["times_flashinfer"] = Rounded(flashinfer_s / timing.median_s);
    report_.Add(std::move(row));
  }

  const CudaAttentionBenchOptions& options_;
  const DeviceMeter meter_;
  const DevicePeaks peaks_;
  Report report_;
  std::string why_no_flashinfer_;
  int num_good_ = 0;
  absl::Status error_;  // of the first case that failed
};

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunCudaAttentionBench(
    const CudaAttentionBenchOptions& options, std::FILE* table) {
  NIBBLE_ASSIGN_OR_RETURN(DeviceMeter meter, DeviceMeter::Create(0, options.meter));
  NIBBLE_ASSIGN_OR_RETURN(const DevicePeaks peaks, meter.MeasurePeaks());
  Bench bench(options, std::move(meter), peaks, table);
  NIBBLE_RETURN_IF_ERROR(bench.Begin());
  for (const std::string& name : options.shapes) {
    NIBBLE_ASSIGN_OR_RETURN(const CudaAttentionShape heads, FindCudaAttentionShape(name));
    for (const Case& shape : CasesOf(options, heads)) bench.RunCase(shape);
  }
  NIBBLE_RETURN_IF_ERROR(bench.error());
  return bench.Finish();
}

}  // namespace nibble::bench
