// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One matrix: our kernels in every form, and cuBLASLt's products. Copies of the matrix take turns.

#include <algorithm>
#include <utility>

#include "bench/cuda/gemm_variants.h"
#include "bench/cuda/lt_int8.h"
#include "bench/random_weight.h"
#include "engine/model/cuda/cuda_weight_packer.h"

namespace nibble::bench {
namespace {

using kernels::GemmDesc;
using kernels::cuda::CublasLt;
using kernels::cuda::DeviceWeight;

constexpr int kMaxCopies = 64;

// `desc` by kernels::cuda::Run; dense ones by cuBLASLt where `lt` is not null.
class OurProduct final : public GemmSubject {
 public:
  static absl::StatusOr<std::unique_ptr<GemmSubject>> Create(const GemmDesc& desc,
                                                             const GemmSetup& setup, CublasLt* lt) {
    NIBBLE_RETURN_IF_ERROR(kernels::cuda::Supports(desc, setup.meter->caps()));
    std::unique_ptr<OurProduct> product(new OurProduct(desc, setup, lt));
    const engine::CudaWeightPacker packer(setup.meter->caps().index);
    const RandomWeight weight(desc, 3);
    int64_t bytes = 0;
    do {
      NIBBLE_ASSIGN_OR_RETURN(auto copy, weight.Pack(packer, setup.pool));
      bytes += static_cast<int64_t>(copy->size_bytes());
      product->copies_.push_back(std::move(copy));
    } while (bytes < setup.meter->rotated_bytes() && product->num_calls() < kMaxCopies);
    NIBBLE_ASSIGN_OR_RETURN(
        product->buffers_,
        GemmBuffers::Create(setup.max_tokens, desc.k, setup.max_tokens, desc.n,
                            kernels::cuda::WorkspaceBytes(desc, setup.max_tokens,
                                                          setup.meter->caps(), lt != nullptr),
                            setup.meter->stream()));
    return product;
  }

  absl::Status Prepare(int64_t num_tokens) override {
    num_tokens_ = num_tokens;
    return absl::OkStatus();
  }
  absl::Status Run(int call) override {
    const DeviceMeter& meter = *setup_.meter;
    if (is_int8()) NIBBLE_RETURN_IF_ERROR(buffers_.Quantize(num_tokens_, meter.stream()));
    return kernels::cuda::Run(
        dynamic_cast<const DeviceWeight&>(*copies_[static_cast<size_t>(call)]),
        {.m = num_tokens_, .a = buffers_.A(), .a8 = buffers_.A8(), .d = buffers_.D()},
        {.caps = meter.caps(),
         .cublaslt = lt_,
         .workspace = buffers_.workspace(),
         .workspace_bytes = buffers_.workspace_bytes()},
        meter.stream());
  }
  int num_calls() const override { return static_cast<int>(copies_.size()); }
  double bytes() const override { return static_cast<double>(copies_.front()->size_bytes()); }
  bool is_int8() const override { return kernels::TakesInt8(desc_.format); }
  std::string kernel() const override {
    const kernels::cuda::GemmPlan plan =
        kernels::cuda::Choose(desc_, num_tokens_, setup_.meter->caps(), lt_ != nullptr);
    return fmt::format("{} n{} k/{}", kernels::cuda::ToString(plan.kernel), plan.tile_n,
                       plan.split_k);
  }

 private:
  OurProduct(const GemmDesc& desc, const GemmSetup& setup, CublasLt* lt)
      : desc_(desc), setup_(setup), lt_(lt) {}

  const GemmDesc desc_;
  const GemmSetup setup_;
  CublasLt* const lt_;
  std::vector<std::unique_ptr<kernels::PackedWeight>> copies_;  // DeviceWeight
  GemmBuffers buffers_;
  int64_t num_tokens_ = 0;
};

// cuBLASLt's int8 product, then the scales.
class LtInt8Product final : public GemmSubject {
 public:
  static absl::StatusOr<std::unique_ptr<GemmSubject>> Create(const CudaGemmShape& shape,
                                                             const GemmSetup& setup) {
    std::unique_ptr<LtInt8Product> product(new LtInt8Product(shape, setup));
    const cudaStream_t stream = setup.meter->stream();
    NIBBLE_ASSIGN_OR_RETURN(
        product->buffers_,
        GemmBuffers::Create(setup.max_tokens, shape.k, setup.max_tokens, shape.n,
                            LtInt8WorkspaceBytes(setup.max_tokens, shape.n), stream));
    std::vector<int8_t> codes(static_cast<size_t>(product->CopyBytes()));
    FillRandomBytes({reinterpret_cast<uint8_t*>(codes.data()), codes.size()}, 2);
    const int64_t wanted =
        (setup.meter->rotated_bytes() + product->CopyBytes() - 1) / product->CopyBytes();
    for (int64_t i = 0; i < std::clamp<int64_t>(wanted, 1, kMaxCopies); ++i) {
      NIBBLE_ASSIGN_OR_RETURN(product->copies_.emplace_back(), gpu::Upload(codes, stream));
    }
    const std::vector<float> ones(static_cast<size_t>(shape.n), 1.0F);
    NIBBLE_ASSIGN_OR_RETURN(product->scales_, gpu::Upload(ones, stream));
    return product;
  }

  absl::Status Prepare(int64_t num_tokens) override {
    num_tokens_ = num_tokens;
    return absl::OkStatus();
  }
  absl::Status Run(int call) override {
    const cudaStream_t stream = setup_.meter->stream();
    NIBBLE_RETURN_IF_ERROR(buffers_.Quantize(num_tokens_, stream));
    return MultiplyInt8(setup_.lt,
                        {.m = num_tokens_,
                         .n = shape_.n,
                         .k = shape_.k,
                         .a = buffers_.A8(),
                         .b = copies_[static_cast<size_t>(call)].data(),
                         .b_stride = buffers_.k_stride(),
                         .scales = scales_.data(),
                         .d = buffers_.D()},
                        buffers_.workspace(), buffers_.workspace_bytes(), stream);
  }
  int num_calls() const override { return static_cast<int>(copies_.size()); }
  double bytes() const override { return static_cast<double>(CopyBytes()); }
  bool is_int8() const override { return true; }
  std::string kernel() const override { return "cublaslt"; }

 private:
  LtInt8Product(CudaGemmShape shape, const GemmSetup& setup)
      : shape_(std::move(shape)), setup_(setup) {}
  int64_t CopyBytes() const { return shape_.n * buffers_.k_stride(); }

  const CudaGemmShape shape_;
  const GemmSetup setup_;
  std::vector<gpu::DeviceBuffer<int8_t>> copies_;  // [n, k_stride]
  gpu::DeviceBuffer<float> scales_;
  GemmBuffers buffers_;
  int64_t num_tokens_ = 0;
};

}  // namespace

std::vector<GemmVariant> DenseVariants(const CudaGemmShape& shape, const GemmSetup& setup) {
  std::vector<GemmVariant> variants;
  const auto add_ours = [&](std::string name, const char* kind, CublasLt* lt) {
    variants.push_back({std::move(name), [desc = DescOf(kind, shape), setup, lt] {
                          return OurProduct::Create(desc, setup, lt);
                        }});
  };
  add_ours(setup.lt != nullptr ? "bf16-cublaslt" : "bf16", "bf16", setup.lt);
  if (setup.lt != nullptr) {
    variants.push_back(
        {"w8a8-cublaslt", [shape, setup] { return LtInt8Product::Create(shape, setup); }});
  }
  for (const char* const kind : {"w4a8-folded", "w4a8-integer", "w4a8-float", "w8a8"}) {
    add_ours(kind, kind, nullptr);
  }
  return variants;
}

}  // namespace nibble::bench
