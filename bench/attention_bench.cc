// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/attention_bench.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "bench/cache_fill.h"
#include "bench/limits.h"
#include "bench/report.h"
#include "bench/roofline.h"
#include "bench/timing.h"
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

nlohmann::ordered_json MeasureCase(const AttentionBenchOptions& options, const Case& shape, Isa isa,
                                   RooflineMeter* meter, ThreadPool* pool) {
  Subject subject(options, shape, pool);
  subject.Run(0, isa, pool);  // scratch memory
  const Roofline roofline = meter->Measure(isa);
  const Timing timing =
      Measure(options.seconds, 3, [&](int64_t i) { subject.Run(i + 1, isa, pool); });
  const double bytes_per_s = static_cast<double>(subject.bytes()) / timing.median_s;
  const double flop_per_s = subject.flop() / timing.median_s;
  return {{"dtype", std::string(ToString(shape.dtype))},
          {"sequences", shape.num_seqs},
          {"context", shape.context},
          {"new_tokens", shape.num_new},
          {"heads", options.num_heads},
          {"kv_heads", options.num_kv_heads},
          {"head_dim", shape.head_dim},
          {"runs", timing.runs},
          {"median_us", Rounded(timing.median_s * 1e6)},
          {"best_us", Rounded(timing.best_s * 1e6)},
          {"gb_per_s", Rounded(bytes_per_s * 1e-9)},
          {"tflop_per_s", Rounded(flop_per_s * 1e-12)},
          {"share_of_read", Rounded(bytes_per_s / roofline.read_bytes_per_s)},
          {"share_of_peak", Rounded(flop_per_s / roofline.float_flop_per_s)},
          {"peaks", ToJson(roofline)}};
}

std::vector<Case> Cases(const AttentionBenchOptions& options) {
  std::vector<Case> cases;
  for (const int64_t head_dim : options.head_dims) {
    for (const std::string& name : options.dtypes) {
      const DType dtype = *ParseCacheDType(name);
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

int64_t CacheBytes(const AttentionBenchOptions& options, const Case& shape) {
  return 2 * shape.num_seqs * shape.context * options.num_kv_heads *
         (shape.head_dim * static_cast<int64_t>(SizeOf(shape.dtype)) + 4);
}

}  // namespace

void AttentionBenchOptions::Validate(std::vector<std::string>* violations) const {
  for (const std::string& name : dtypes) {
    if (ParseCacheDType(name).has_value()) continue;
    violations->push_back(
        fmt::format("--kv-cache-dtype is '{}', want float32, bfloat16, float16, int8", name));
  }
  CheckLimits("--head-dim", head_dims, 1, 1024, violations);
  CheckLimits("--heads", {num_heads}, 1, 1024, violations);
  CheckLimits("--kv-heads", {num_kv_heads}, 1, 1024, violations);
  if (num_kv_heads > 0 && num_heads % num_kv_heads != 0) {
    violations->push_back(
        fmt::format("--heads is {}, want a multiple of --kv-heads ({})", num_heads, num_kv_heads));
  }
  CheckLimits("--batch", sequences, 1, 4096, violations);
  CheckLimits("--context", contexts, 1, 1 << 20, violations);
  CheckLimits("--prompt", prefills, 1, 1 << 20, violations);
  CheckLimits("--block-size", {block_size}, 1, 256, violations);
  CheckLimits("--max-cache-bytes", {max_cache_bytes}, 1, int64_t{1} << 46, violations);
  CheckNumber("--seconds", seconds, 0.0, 3600.0, violations);
}

absl::StatusOr<nlohmann::ordered_json> RunAttentionBench(const AttentionBenchOptions& options,
                                                         Isa isa, ThreadPool* pool,
                                                         std::FILE* table) {
  RooflineMeter meter(pool);
  Report report("attention",
                {{"dtype", "dtype", 9},
                 {"head_dim", "head_dim", 10},
                 {"sequences", "batch", 7},
                 {"context", "context", 9},
                 {"new_tokens", "new", 6},
                 {"median_us", "us", 11, 1},
                 {"gb_per_s", "GB/s", 8, 2},
                 {"share_of_read", "of read", 9, 3},
                 {"tflop_per_s", "TFLOP/s", 9, 3},
                 {"share_of_peak", "of peak", 9, 3}},
                table);
  const nlohmann::ordered_json peaks = ToJson(meter.Measure(isa));
  for (const Case& shape : Cases(options)) {
    const int64_t bytes = CacheBytes(options, shape);
    if (bytes > options.max_cache_bytes) {
      report.Add({{"dtype", std::string(ToString(shape.dtype))},
                  {"sequences", shape.num_seqs},
                  {"context", shape.context},
                  {"new_tokens", shape.num_new},
                  {"head_dim", shape.head_dim},
                  {"left_out", fmt::format("{} bytes of cache, the limit is {}", bytes,
                                           options.max_cache_bytes)}});
      continue;
    }
    report.Add(MeasureCase(options, shape, isa, &meter, pool));
  }
  return report.Finish(pool->num_threads(), peaks, {{"isa", std::string(ToString(isa))}});
}

}  // namespace nibble::bench
