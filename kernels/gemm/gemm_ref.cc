// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The equations in plain loops: what every other variant is tested against.

#include <algorithm>

#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

class RefWeight : public GemmWeight {
 public:
  RefWeight(const GemmVariant& variant, const GemmDesc& desc)
      : GemmWeight(GemmLoops::kRef, variant, desc) {}
  virtual void Multiply(const GemmJob& job, ThreadPool* pool) const = 0;
};

class DenseRef final : public RefWeight {
 public:
  DenseRef(const GemmVariant& variant, const GemmDesc& desc, const DenseSource& source)
      : RefWeight(variant, desc),
        elements_(static_cast<size_t>(desc.n * desc.k) * SizeOf(desc.storage)) {
    for (int64_t i = 0; i < desc.n * desc.k; ++i) {
      StoreElement(LoadElement(source.weights, source.storage, i), desc.storage, i,
                   elements_.data());
    }
  }
  size_t size_bytes() const override { return elements_.size(); }

  // d[m, n] = float(sum_k a[m, k] * b[n, k] in double) + bias[n]
  void Multiply(const GemmJob& job, ThreadPool* pool) const override {
    const GemmArgs& args = job.args;
    const int64_t k = desc_.k;
    pool->ParallelFor(desc_.n, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> b(static_cast<size_t>(k));
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t i = 0; i < k; ++i) {
          b[static_cast<size_t>(i)] = LoadElement(elements_.data(), desc_.storage, n * k + i);
        }
        for (int64_t m = 0; m < args.m; ++m) {
          double sum = 0.0;
          for (int64_t i = 0; i < k; ++i) {
            sum += static_cast<double>(args.a[job.RowOfA(m) * args.a_stride + i]) *
                   static_cast<double>(b[static_cast<size_t>(i)]);
          }
          const auto value = static_cast<float>(sum);
          args.d[m * args.d_stride + n] = args.bias != nullptr ? value + args.bias[n] : value;
        }
      }
    });
  }

 private:
  std::vector<uint8_t> elements_;  // [n, k] of desc.storage
};

class Int4FloatRef final : public RefWeight {
 public:
  Int4FloatRef(const GemmVariant& variant, const GemmDesc& desc, const Int4Weight& weight)
      : RefWeight(variant, desc), weight_(weight) {}
  size_t size_bytes() const override {
    return weight_.codes.size() + weight_.scales.size() * sizeof(float) +
           weight_.zero_points.size();
  }

  // d[m, n] = float(sum_k a[m, k] * float(scale * (code - zero)) in double) + bias[n]
  void Multiply(const GemmJob& job, ThreadPool* pool) const override {
    const GemmArgs& args = job.args;
    pool->ParallelFor(desc_.n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t m = 0; m < args.m; ++m) {
          double sum = 0.0;
          for (int64_t k = 0; k < desc_.k; ++k) {
            sum += static_cast<double>(args.a[job.RowOfA(m) * args.a_stride + k]) *
                   static_cast<double>(weight_.Dequantize(n, k));
          }
          const auto value = static_cast<float>(sum);
          args.d[m * args.d_stride + n] = args.bias != nullptr ? value + args.bias[n] : value;
        }
      }
    });
  }

 private:
  const Int4Weight weight_;
};

class Int4Ref final : public RefWeight {
 public:
  Int4Ref(const GemmVariant& variant, const GemmDesc& desc, const Int4Source& source)
      : RefWeight(variant, desc),
        weight_(source.weight),
        integers_(source.integers),
        channel_(source.channel) {}
  size_t size_bytes() const override {
    return weight_.codes.size() + weight_.scales.size() * sizeof(float) +
           weight_.zero_points.size() + integers_.size() * sizeof(int16_t) +
           channel_.size() * sizeof(float);
  }

  void Multiply(const GemmJob& job, ThreadPool* pool) const override {
    const GemmArgs& args = job.args;
    pool->ParallelFor(desc_.n, 1, [&](int64_t begin, int64_t end) {
      std::vector<int8_t> q(static_cast<size_t>(desc_.k));
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t i = 0; i < desc_.k; ++i) {
          q[static_cast<size_t>(i)] = static_cast<int8_t>(weight_.Code(n, i) - weight_.Zero(n, i));
        }
        for (int64_t m = 0; m < args.m; ++m) {
          const int64_t row = job.RowOfA(m);
          const float value =
              Element(args.a8.values + row * args.a8.stride, q.data(), n, args.a8.scales[row]);
          args.d[m * args.d_stride + n] = args.bias != nullptr ? value + args.bias[n] : value;
        }
      }
    });
  }

 private:
  // float(acc) * (s_a * c[n]) with acc = sum_g S_g * sum_k a8 * q, or the same with float scales.
  float Element(const int8_t* a, const int8_t* q, int64_t n, float a_scale) const {
    int64_t acc = 0;
    double float_acc = 0.0;
    for (int64_t g = 0; g < weight_.num_groups(); ++g) {
      const int64_t begin = g * weight_.group_size;
      const int64_t end = std::min(begin + weight_.group_size, weight_.k);
      int64_t partial = 0;
      for (int64_t k = begin; k < end; ++k) partial += int64_t{a[k]} * q[k];
      const auto index = static_cast<size_t>(n * weight_.num_groups() + g);
      if (integers_.empty()) {
        float_acc += static_cast<double>(partial) * static_cast<double>(weight_.scales[index]);
      } else {
        acc += integers_[index] * partial;
      }
    }
    if (integers_.empty()) return static_cast<float>(float_acc * static_cast<double>(a_scale));
    return static_cast<float>(acc) * (a_scale * channel_[static_cast<size_t>(n)]);
  }

  const Int4Weight weight_;
  const std::vector<int16_t> integers_;  // [n, num_groups]; empty for kFloat
  const std::vector<float> channel_;     // [n]
};

class Int8Ref final : public RefWeight {
 public:
  Int8Ref(const GemmVariant& variant, const GemmDesc& desc, const Int8Weight& weight)
      : RefWeight(variant, desc), weight_(weight) {}
  size_t size_bytes() const override {
    return weight_.codes.size() + weight_.scales.size() * sizeof(float);
  }

  // d[m, n] = float(sum_k a8[m, k] * codes[n, k]) * (s_a[m] * scales[n]) + bias[n]
  void Multiply(const GemmJob& job, ThreadPool* pool) const override {
    const GemmArgs& args = job.args;
    pool->ParallelFor(desc_.n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int8_t* codes = weight_.codes.data() + n * desc_.k;
        for (int64_t m = 0; m < args.m; ++m) {
          const int64_t row = job.RowOfA(m);
          const int8_t* a = args.a8.values + row * args.a8.stride;
          int64_t acc = 0;
          for (int64_t k = 0; k < desc_.k; ++k) acc += int64_t{a[k]} * codes[k];
          const float value = static_cast<float>(acc) *
                              (args.a8.scales[row] * weight_.scales[static_cast<size_t>(n)]);
          args.d[m * args.d_stride + n] = args.bias != nullptr ? value + args.bias[n] : value;
        }
      }
    });
  }

 private:
  const Int8Weight weight_;
};

}  // namespace

void MultiplyRef(std::span<const GemmJob> jobs, ThreadPool* pool) {
  for (const GemmJob& job : jobs) static_cast<const RefWeight*>(job.weight)->Multiply(job, pool);
}

std::unique_ptr<GemmWeight> PackDenseRef(const GemmVariant& variant, const GemmDesc& desc,
                                         const DenseSource& source, ThreadPool* /*pool*/) {
  return std::make_unique<DenseRef>(variant, desc, source);
}

std::unique_ptr<GemmWeight> PackInt4FloatRef(const GemmVariant& variant, const GemmDesc& desc,
                                             const Int4Source& source, ThreadPool* /*pool*/) {
  return std::make_unique<Int4FloatRef>(variant, desc, source.weight);
}

std::unique_ptr<GemmWeight> PackInt4Ref(const GemmVariant& variant, const GemmDesc& desc,
                                        const Int4Source& source, ThreadPool* /*pool*/) {
  return std::make_unique<Int4Ref>(variant, desc, source);
}

std::unique_ptr<GemmWeight> PackInt8Ref(const GemmVariant& variant, const GemmDesc& desc,
                                        const Int8Weight& weight, ThreadPool* /*pool*/) {
  return std::make_unique<Int8Ref>(variant, desc, weight);
}

}  // namespace nibble::kernels
