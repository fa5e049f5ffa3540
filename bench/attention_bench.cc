// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/attention_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "bench/roofline.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/kv/kv_cache.h"

namespace nibble::bench {
namespace {

// Blocks of as many copies of a case as lie past the last-level cache, used in turn, as a model's
// layers are.
constexpr int64_t kRotatedBytes = int64_t{256} << 20;

struct Case {
  DType dtype = DType::kBf16;
  int64_t head_dim = 0;
  int64_t num_seqs = 1;
  int64_t context = 0;
  int64_t num_new = 1;  // of each sequence
};

// Numbers in -1..1 that repeat after a long time.
class Noise {
 public:
  float Next() {
    state_ = state_ * 1664525U + 1013904223U;
    return static_cast<float>(static_cast<int32_t>(state_)) * 0x1p-31F;
  }
  int64_t Below(int64_t limit) {
    return static_cast<int64_t>(static_cast<double>(Next() + 1.0F) * 0.5 *
                                static_cast<double>(limit)) %
           limit;
  }

 private:
  uint32_t state_ = 1;
};

// One layer's cache with room for some copies of a case, filled, its blocks in random order.
class Subject {
 public:
  Subject(const AttentionBenchOptions& options, const Case& shape, ThreadPool* pool)
      : options_(options), shape_(shape) {
    max_blocks_ = (shape.context + options.block_size - 1) / options.block_size;
    const int64_t blocks = max_blocks_ * shape.num_seqs;
    num_copies_ = std::max<int64_t>(1, (kRotatedBytes + bytes() - 1) / bytes());
    view_ = {.dtype = shape.dtype,
             .num_blocks = blocks * num_copies_,
             .num_kv_heads = options.num_kv_heads,
             .block_size = options.block_size,
             .head_dim = shape.head_dim};
    storage_ = AlignedBuffer<uint8_t>(static_cast<size_t>(2 * view_.num_bytes()));
    view_.keys = storage_.data();
    view_.values = storage_.data() + view_.num_bytes();
    if (shape.dtype == DType::kI8) {
      scales_ = AlignedBuffer<float>(static_cast<size_t>(2 * view_.num_rows()));
      view_.key_scales = scales_.data();
      view_.value_scales = scales_.data() + view_.num_rows();
    }
    Noise noise;
    block_tables_.resize(static_cast<size_t>(view_.num_blocks));
    std::iota(block_tables_.begin(), block_tables_.end(), 0);
    for (size_t i = options.scattered ? block_tables_.size() : 0; i > 1; --i) {
      std::swap(block_tables_[i - 1],
                block_tables_[static_cast<size_t>(noise.Below(static_cast<int64_t>(i)))]);
    }
    Fill(&noise, pool);
    q_.resize(static_cast<size_t>(shape.num_seqs * shape.num_new * q_columns()));
    for (float& q : q_) q = noise.Next();
    out_.resize(q_.size());
    for (int64_t s = 0; s <= shape.num_seqs; ++s) {
      query_start_.push_back(static_cast<int32_t>(s * shape.num_new));
    }
    context_lens_.assign(static_cast<size_t>(shape.num_seqs), static_cast<int32_t>(shape.context));
  }

  int64_t q_columns() const { return options_.num_heads * shape_.head_dim; }
  // What one run must read of the cache.
  int64_t bytes() const {
    const auto element = static_cast<int64_t>(SizeOf(shape_.dtype));
    const int64_t row = shape_.head_dim * element + (shape_.dtype == DType::kI8 ? 4 : 0);
    return 2 * shape_.num_seqs * shape_.context * options_.num_kv_heads * row;
  }
  // Multiplications and additions of pairs of a query and a key that it sees.
  double flop() const {
    const double new_tokens = static_cast<double>(shape_.num_new);
    const double pairs =
        new_tokens * (static_cast<double>(shape_.context) - 0.5 * (new_tokens - 1.0));
    return 4.0 * pairs * static_cast<double>(shape_.num_seqs * q_columns());
  }

  void Run(int64_t iteration, Isa isa, ThreadPool* pool) {
    const int64_t copy = iteration % num_copies_;
    kernels::PagedAttention(
        view_,
        {.num_seqs = shape_.num_seqs,
         .num_heads = options_.num_heads,
         .q = q_.data(),
         .q_stride = q_columns(),
         .query_start = query_start_.data(),
         .context_lens = context_lens_.data(),
         .block_tables = block_tables_.data() + copy * shape_.num_seqs * max_blocks_,
         .max_blocks_per_seq = max_blocks_,
         .scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim)),
         .out = out_.data(),
         .out_stride = q_columns()},
        isa, pool);
  }

 private:
  void Fill(Noise* noise, ThreadPool* pool) {
    constexpr int64_t kRows = 256;
    const int64_t columns = options_.num_kv_heads * shape_.head_dim;
    std::vector<float> rows(static_cast<size_t>(kRows * columns));
    for (float& x : rows) x = noise->Next();
    std::vector<int32_t> slots(static_cast<size_t>(kRows));
    const int64_t num_slots = view_.num_blocks * view_.block_size;
    for (int64_t first = 0; first < num_slots; first += kRows) {
      std::iota(slots.begin(), slots.end(), static_cast<int32_t>(first));
      kernels::KvAppend(view_,
                        {.num_tokens = std::min(kRows, num_slots - first),
                         .k = rows.data(),
                         .k_stride = columns,
                         .v = rows.data(),
                         .v_stride = columns,
                         .slot_mapping = slots.data()},
                        HostCpuFeatures().Best(), pool);
    }
  }

  const AttentionBenchOptions& options_;
  const Case shape_;
  int64_t max_blocks_ = 0;
  int64_t num_copies_ = 1;
  kernels::KvCacheView view_;
  AlignedBuffer<uint8_t> storage_;
  AlignedBuffer<float> scales_;
  std::vector<int32_t> block_tables_;  // [num_copies, num_seqs, max_blocks]
  std::vector<float> q_;
  std::vector<float> out_;
  std::vector<int32_t> query_start_;
  std::vector<int32_t> context_lens_;
};

void Measure(const AttentionBenchOptions& options, const Case& shape, Isa isa,
             const Roofline& roofline, ThreadPool* pool, bool* first) {
  Subject subject(options, shape, pool);
  std::vector<double> times;
  double total = 0.0;
  subject.Run(0, isa, pool);  // scratch memory
  for (int64_t i = 1; times.size() < 3 || total < options.seconds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    subject.Run(i, isa, pool);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    times.push_back(time.count());
    total += times.back();
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  const double bytes_per_s = static_cast<double>(subject.bytes()) / median;
  const double flop_per_s = subject.flop() / median;
  fmt::print(
      "{}\n    {{\"variant\": \"{}\", \"dtype\": \"{}\", \"sequences\": {}, \"context\": {}, "
      "\"new_tokens\": {}, \"heads\": {}, \"kv_heads\": {}, \"head_dim\": {}, "
      "\"median_us\": {:.1f}, \"best_us\": {:.1f}, \"gb_per_s\": {:.2f}, \"share_of_read\": "
      "{:.3f}, "
      "\"tflop_per_s\": {:.4f}, \"share_of_peak\": {:.3f}}}",
      *first ? "" : ",", ToString(isa), ToString(shape.dtype), shape.num_seqs, shape.context,
      shape.num_new, options.num_heads, options.num_kv_heads, shape.head_dim, median * 1e6,
      times[0] * 1e6, bytes_per_s * 1e-9, bytes_per_s / roofline.read_bytes_per_s,
      flop_per_s * 1e-12, flop_per_s / roofline.float_flop_per_s);
  std::fflush(stdout);
  *first = false;
}

std::vector<Case> Cases(const AttentionBenchOptions& options) {
  std::vector<Case> cases;
  for (const int64_t head_dim : options.head_dims) {
    for (const DType dtype : options.dtypes) {
      for (const int64_t context : options.contexts) {
        for (const int64_t num_seqs : options.sequences) {
          cases.push_back({dtype, head_dim, num_seqs, context, 1});
        }
      }
      for (const int64_t length : options.prefills) {
        cases.push_back({dtype, head_dim, 1, length, length});
      }
    }
  }
  return cases;
}

absl::Status Check(const AttentionBenchOptions& options) {
  const auto check = [](const char* what, int64_t value, int64_t high) -> absl::Status {
    if (value >= 1 && value <= high) return absl::OkStatus();
    return InvalidArgument("attention bench: {} is {}, the limits are 1 and {}", what, value, high);
  };
  NIBBLE_RETURN_IF_ERROR(check("KV heads", options.num_kv_heads, 1024));
  NIBBLE_RETURN_IF_ERROR(check("heads", options.num_heads, 1024));
  NIBBLE_RETURN_IF_ERROR(check("block size", options.block_size, 256));
  if (options.num_heads % options.num_kv_heads != 0) {
    return InvalidArgument("attention bench: {} heads are no multiple of {} KV heads",
                           options.num_heads, options.num_kv_heads);
  }
  for (const int64_t x : options.head_dims) NIBBLE_RETURN_IF_ERROR(check("head_dim", x, 1024));
  for (const int64_t x : options.sequences) NIBBLE_RETURN_IF_ERROR(check("sequences", x, 4096));
  for (const int64_t x : options.contexts) NIBBLE_RETURN_IF_ERROR(check("context", x, 1 << 20));
  for (const int64_t x : options.prefills) NIBBLE_RETURN_IF_ERROR(check("prefill", x, 1 << 20));
  return absl::OkStatus();
}

}  // namespace

absl::Status RunAttentionBench(const AttentionBenchOptions& options, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(Check(options));
  const Isa best = HostCpuFeatures().Best();
  fmt::print("{{\"machine\": \"{}\", \"threads\": {}, \"results\": [", HostCpuFeatures().name,
             pool->num_threads());
  bool first = true;
  std::string rooflines;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512Vnni}) {
    if (isa > best) continue;
    const bool chosen = options.filter.empty()
                            ? isa == std::min(best, Isa::kAvx512Vnni)
                            : ToString(isa).find(options.filter) != std::string_view::npos;
    if (!chosen) continue;
    const Roofline roofline = MeasureRoofline(isa, pool);
    rooflines +=
        fmt::format("{}\n    \"{}\": {{\"read_gb_per_s\": {:.2f}, \"float_tflop_per_s\": {:.4f}}}",
                    rooflines.empty() ? "" : ",", ToString(isa), roofline.read_bytes_per_s * 1e-9,
                    roofline.float_flop_per_s * 1e-12);
    for (const Case& shape : Cases(options)) {
      const int64_t bytes = 2 * shape.num_seqs * shape.context * options.num_kv_heads *
                            (shape.head_dim * static_cast<int64_t>(SizeOf(shape.dtype)) + 4);
      if (bytes > options.max_cache_bytes) {
        fmt::print(stderr, "left out: {} sequences of {} tokens, {} bytes of cache\n",
                   shape.num_seqs, shape.context, bytes);
        continue;
      }
      Measure(options, shape, isa, roofline, pool, &first);
    }
  }
  fmt::print("\n  ],\n  \"rooflines\": {{{}\n  }}}}\n", rooflines);
  return absl::OkStatus();
}

}  // namespace nibble::bench
