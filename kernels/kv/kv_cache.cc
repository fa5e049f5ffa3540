// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/kv/kv_cache.h"

#include <cstring>

#include "base/check.h"
#include "kernels/device/row_loop.h"
#include "kernels/device/thread_scratch.h"
#include "kernels/kv/kv_convert.h"
#include "kernels/quant/quantize_rows.h"
#include "kernels/rope/rope_head.h"

namespace nibble::kernels {
namespace {

// Null for types that need no conversion function. Sets above AVX2 use its variant.
KvConvertFunction ChooseConvert(DType dtype, Isa isa) {
  const bool vectors = isa >= Isa::kAvx2;
  if (dtype == DType::kBf16) return vectors ? avx2::ConvertToBf16 : ref::ConvertToBf16;
  if (dtype == DType::kF16) return vectors ? avx2::ConvertToF16 : ref::ConvertToF16;
  return nullptr;
}

// Writes heads of one token to their places.
class Appender {
 public:
  Appender(const KvCacheView& cache, Isa isa)
      : cache_(cache), isa_(isa), convert_(ChooseConvert(cache.dtype, isa)) {
    NIBBLE_CHECK(cache.dtype == DType::kF32 || cache.dtype == DType::kBf16 ||
                 cache.dtype == DType::kF16 || cache.dtype == DType::kI8);
    NIBBLE_CHECK((cache.dtype == DType::kI8) == (cache.key_scales != nullptr));
    NIBBLE_CHECK((cache.dtype == DType::kI8) == (cache.value_scales != nullptr));
  }

  // `k` and `v` have a token's heads side by side.
  void Append(int64_t slot, const float* k, const float* v) const {
    NIBBLE_CHECK(slot >= 0 && slot < cache_.num_blocks * cache_.block_size);
    struct Purpose;
    char* const head = ThreadScratch<Purpose, char>(static_cast<size_t>(cache_.head_dim) * 4);
    const int64_t first = slot / cache_.block_size * cache_.num_kv_heads;
    const int64_t offset = slot % cache_.block_size;
    for (int64_t i = 0; i < cache_.num_kv_heads; ++i) {
      const int64_t block = (first + i) * cache_.block_size;  // its first position of this head
      const int64_t element = i * cache_.head_dim;
      Convert(k + element, head, cache_.key_scales, block + offset);
      ScatterKey(head, block * cache_.head_dim + offset);
      Convert(v + element, Element(cache_.values, (block + offset) * cache_.head_dim),
              cache_.value_scales, block + offset);
    }
  }

 private:
  char* Element(void* data, int64_t index) const {
    return static_cast<char*>(data) + index * static_cast<int64_t>(SizeOf(cache_.dtype));
  }

  // One head to `out`, its scale to scales[row].
  void Convert(const float* in, char* out, float* scales, int64_t row) const {
    if (cache_.dtype == DType::kI8) {
      int32_t sum = 0;
      QuantizeRowRange(in, cache_.head_dim, 1, cache_.head_dim,
                       {.values = reinterpret_cast<int8_t*>(out),
                        .scales = scales + row,
                        .sums = &sum,
                        .stride = cache_.head_dim},
                       isa_);
    } else if (convert_ == nullptr) {
      std::memcpy(out, in, static_cast<size_t>(cache_.head_dim) * sizeof(float));
    } else {
      convert_(in, reinterpret_cast<uint16_t*>(out), cache_.head_dim);
    }
  }

  // Component d of `key` to element first + d * block_size.
  void ScatterKey(const char* key, int64_t first) const {
    switch (SizeOf(cache_.dtype)) {
      case 1:
        Scatter<uint8_t>(key, first);
        return;
      case 2:
        Scatter<uint16_t>(key, first);
        return;
      default:
        Scatter<uint32_t>(key, first);
    }
  }
  template <typename T>
  void Scatter(const char* key, int64_t first) const {
    T* const out = static_cast<T*>(cache_.keys) + first;
    for (int64_t d = 0; d < cache_.head_dim; ++d) {
      std::memcpy(out + d * cache_.block_size, key + d * static_cast<int64_t>(sizeof(T)),
                  sizeof(T));
    }
  }

  const KvCacheView& cache_;
  const Isa isa_;
  const KvConvertFunction convert_;
};

}  // namespace

void KvAppend(const KvCacheView& cache, const KvAppendArgs& args, Isa isa, ThreadPool* pool) {
  const Appender appender(cache, isa);
  ForRows(pool, args.num_tokens, cache.num_kv_heads * cache.head_dim,
          [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; ++token) {
              appender.Append(args.slot_mapping[token], args.k + token * args.k_stride,
                              args.v + token * args.v_stride);
            }
          });
}

void RopeKvAppend(const RopeTable& table, const KvCacheView& cache, const RopeKvAppendArgs& args,
                  Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK_LE(table.rotary_dim, cache.head_dim);
  const Appender appender(cache, isa);
  const RotateHeadFunction rotate = ChooseRotateHead(isa);
  const int64_t half = table.rotary_dim / 2;
  const auto rotate_heads = [&](float* x, int64_t num_heads, int64_t position) {
    const float* cos = table.cos.data() + position * half;
    const float* sin = table.sin.data() + position * half;
    for (int64_t head = 0; head < num_heads; ++head) {
      rotate(x + head * cache.head_dim, cos, sin, half);
    }
  };
  ForRows(pool, args.num_tokens, (args.num_heads + cache.num_kv_heads) * cache.head_dim,
          [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; ++token) {
              const int64_t position = args.positions[token];
              NIBBLE_CHECK(position >= 0 && position < table.max_positions);
              float* const k = args.k + token * args.stride;
              rotate_heads(args.q + token * args.stride, args.num_heads, position);
              rotate_heads(k, cache.num_kv_heads, position);
              appender.Append(args.slot_mapping[token], k, args.v + token * args.stride);
            }
          });
}

}  // namespace nibble::kernels
