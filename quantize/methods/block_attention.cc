// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/block_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace nibble::quantize {
namespace {

// Every product below is a row times a number added to a row: the compiler vectorizes it on any
// instruction set without changing an order of summation. Scores therefore read keys transposed.
void AddScaled(const float* row, float factor, int64_t count, float* sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += factor * row[i];
}

// One key/value head with its keys or values as [head_dim, num_tokens].
struct KvHead {
  const AttentionInputs& in;
  int64_t head;

  const float* Key(int64_t token) const { return Row(in.k, token); }
  const float* Value(int64_t token) const { return Row(in.v, token); }
  int64_t First(int64_t token) const {
    return in.sliding_window > 0 ? std::max<int64_t>(0, token - in.sliding_window + 1) : 0;
  }
  std::vector<float> Transposed(const float* rows) const {
    std::vector<float> columns(static_cast<size_t>(in.head_dim * in.num_tokens));
    for (int64_t token = 0; token < in.num_tokens; ++token) {
      const float* row = Row(rows, token);
      for (int64_t d = 0; d < in.head_dim; ++d) {
        columns[static_cast<size_t>(d * in.num_tokens + token)] = row[d];
      }
    }
    return columns;
  }
  // sums[s] = row . column s, s in [begin, end).
  void Products(const float* row, const std::vector<float>& columns, int64_t begin, int64_t end,
                float* sums) const {
    std::fill(sums + begin, sums + end, 0.0F);
    for (int64_t d = 0; d < in.head_dim; ++d) {
      AddScaled(columns.data() + d * in.num_tokens + begin, row[d], end - begin, sums + begin);
    }
  }
  // Probabilities of the positions First(token)..token.
  void Probabilities(const float* query, const std::vector<float>& keys, int64_t token,
                     float* p) const {
    const int64_t begin = First(token);
    Products(query, keys, begin, token + 1, p);
    const float scale = 1.0F / std::sqrt(static_cast<float>(in.head_dim));
    const float largest = *std::max_element(p + begin, p + token + 1);
    float sum = 0.0F;
    for (int64_t s = begin; s <= token; ++s) {
      p[s] = std::exp((p[s] - largest) * scale);
      sum += p[s];
    }
    for (int64_t s = begin; s <= token; ++s) p[s] /= sum;
  }

 private:
  const float* Row(const float* rows, int64_t token) const {
    return rows + (token * in.num_kv_heads + head) * in.head_dim;
  }
};

}  // namespace

void Attend(const AttentionInputs& in, float* out, ThreadPool* pool) {
  const int64_t group = in.num_heads / in.num_kv_heads;
  pool->ParallelFor(in.num_kv_heads, 1, [&](int64_t first_head, int64_t last_head) {
    std::vector<float> p(static_cast<size_t>(in.num_tokens));
    for (int64_t head = first_head; head < last_head; ++head) {
      const KvHead kv = {in, head};
      const std::vector<float> keys = kv.Transposed(in.k);
      for (int64_t token = 0; token < in.num_tokens; ++token) {
        for (int64_t member = 0; member < group; ++member) {
          const int64_t offset = (token * in.num_heads + head * group + member) * in.head_dim;
          kv.Probabilities(in.q + offset, keys, token, p.data());
          std::fill_n(out + offset, in.head_dim, 0.0F);
          for (int64_t s = kv.First(token); s <= token; ++s) {
            AddScaled(kv.Value(s), p[static_cast<size_t>(s)], in.head_dim, out + offset);
          }
        }
      }
    }
  });
}

void AttendBackward(const AttentionInputs& in, const float* d_out,
                    const AttentionGradients& gradients, ThreadPool* pool) {
  const int64_t group = in.num_heads / in.num_kv_heads;
  const float scale = 1.0F / std::sqrt(static_cast<float>(in.head_dim));
  const int64_t kv_count = in.num_tokens * in.num_kv_heads * in.head_dim;
  std::fill_n(gradients.q, in.num_tokens * in.num_heads * in.head_dim, 0.0F);
  std::fill_n(gradients.k, kv_count, 0.0F);
  std::fill_n(gradients.v, kv_count, 0.0F);
  // A piece owns whole key/value heads: no two threads add to one gradient.
  pool->ParallelFor(in.num_kv_heads, 1, [&](int64_t first_head, int64_t last_head) {
    std::vector<float> p(static_cast<size_t>(in.num_tokens));
    std::vector<float> dp(static_cast<size_t>(in.num_tokens));
    for (int64_t head = first_head; head < last_head; ++head) {
      const KvHead kv = {in, head};
      const std::vector<float> keys = kv.Transposed(in.k);
      const std::vector<float> values = kv.Transposed(in.v);
      for (int64_t token = 0; token < in.num_tokens; ++token) {
        const int64_t begin = kv.First(token);
        for (int64_t member = 0; member < group; ++member) {
          const int64_t offset = (token * in.num_heads + head * group + member) * in.head_dim;
          const float* query = in.q + offset;
          kv.Probabilities(query, keys, token, p.data());
          kv.Products(d_out + offset, values, begin, token + 1, dp.data());
          // softmax: ds = p * (dp - sum p dp)
          float mean = 0.0F;
          for (int64_t s = begin; s <= token; ++s) {
            mean += p[static_cast<size_t>(s)] * dp[static_cast<size_t>(s)];
          }
          for (int64_t s = begin; s <= token; ++s) {
            const auto i = static_cast<size_t>(s);
            const int64_t row = (s * in.num_kv_heads + head) * in.head_dim;
            const float ds = p[i] * (dp[i] - mean) * scale;
            AddScaled(kv.Key(s), ds, in.head_dim, gradients.q + offset);
            AddScaled(query, ds, in.head_dim, gradients.k + row);
            AddScaled(d_out + offset, p[i], in.head_dim, gradients.v + row);
          }
        }
      }
    }
  });
}

}  // namespace nibble::quantize
