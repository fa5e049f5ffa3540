// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One matrix of all experts of a layer: our grouped kernels, and cuBLASLt with a call for each
// expert. Tokens choose their experts at random; calls differ in what they chose.

#include <algorithm>
#include <random>
#include <utility>

#include "bench/cuda/gemm_variants.h"
#include "bench/random_weight.h"
#include "engine/model/cuda/cuda_weight_packer.h"
#include "kernels/gemm/cuda/gemm_plan.h"

namespace nibble::bench {
namespace {

using kernels::GemmDesc;
using kernels::cuda::CublasLt;
using kernels::cuda::DeviceWeight;
using kernels::cuda::GroupedWeights;

constexpr int kRoutings = 8;
constexpr int kMaxCopies = 8;

// What the tokens of a step chose.
struct Routing {
  std::vector<int32_t> offsets;  // [num_experts + 1] of rows
  std::vector<int32_t> rows;     // [offsets.back()]: tokens
  gpu::DeviceBuffer<int32_t> device_offsets;
  gpu::DeviceBuffer<int32_t> device_rows;

  int64_t NumHit() const {
    int64_t hit = 0;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) hit += offsets[e + 1] > offsets[e] ? 1 : 0;
    return hit;
  }
};

// Each token's experts differ from each other, and all are as likely.
absl::StatusOr<Routing> MakeRouting(const CudaGemmShape& shape, int64_t num_tokens, uint32_t seed,
                                    cudaStream_t stream) {
  std::mt19937 random(seed);
  std::vector<std::vector<int32_t>> tokens_of(static_cast<size_t>(shape.num_experts));
  std::vector<size_t> experts(tokens_of.size());
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (size_t e = 0; e < experts.size(); ++e) experts[e] = e;
    for (int64_t i = 0; i < shape.num_experts_per_tok; ++i) {
      const auto first = static_cast<size_t>(i);
      std::swap(experts[first], experts[first + random() % (experts.size() - first)]);
      tokens_of[experts[first]].push_back(static_cast<int32_t>(t));
    }
  }
  Routing routing;
  routing.offsets.push_back(0);
  for (const std::vector<int32_t>& tokens : tokens_of) {
    routing.rows.insert(routing.rows.end(), tokens.begin(), tokens.end());
    routing.offsets.push_back(static_cast<int32_t>(routing.rows.size()));
  }
  NIBBLE_ASSIGN_OR_RETURN(routing.device_offsets, gpu::Upload(routing.offsets, stream));
  NIBBLE_ASSIGN_OR_RETURN(routing.device_rows, gpu::Upload(routing.rows, stream));
  return routing;
}

// Weights of all experts, activations, and the routings of the step that is measured.
class ExpertProduct : public GemmSubject {
 public:
  absl::Status Prepare(int64_t num_tokens) override {
    num_tokens_ = num_tokens;
    routings_.clear();
    for (uint32_t seed = 0; seed < kRoutings; ++seed) {
      NIBBLE_ASSIGN_OR_RETURN(routings_.emplace_back(),
                              MakeRouting(shape_, num_tokens, seed, setup_.meter->stream()));
    }
    return absl::OkStatus();
  }
  int num_calls() const override { return kRoutings; }
  double bytes() const override {
    int64_t hit = 0;
    for (const Routing& routing : routings_) hit += routing.NumHit();
    return static_cast<double>(hit) / kRoutings * static_cast<double>(copies_[0][0]->size_bytes());
  }
  bool is_int8() const override { return kernels::TakesInt8(desc_.format); }

 protected:
  ExpertProduct(CudaGemmShape shape, const GemmDesc& desc, const GemmSetup& setup)
      : shape_(std::move(shape)), desc_(desc), setup_(setup) {}

  absl::Status MakeWeights() {
    NIBBLE_RETURN_IF_ERROR(kernels::cuda::Supports(desc_, setup_.meter->caps()));
    const engine::CudaWeightPacker packer(setup_.meter->caps().index);
    const RandomWeight weight(desc_, 3);
    int64_t bytes = 0;
    do {
      auto& experts = copies_.emplace_back();
      for (int64_t e = 0; e < shape_.num_experts; ++e) {
        NIBBLE_ASSIGN_OR_RETURN(experts.emplace_back(), weight.Pack(packer, setup_.pool));
        bytes += static_cast<int64_t>(experts.back()->size_bytes());
      }
    } while (bytes < setup_.meter->rotated_bytes() && std::ssize(copies_) < kMaxCopies);
    return absl::OkStatus();
  }
  absl::Status MakeBuffers(int64_t workspace_bytes) {
    const int64_t num_rows = shape_.NumRows(setup_.max_tokens);
    NIBBLE_ASSIGN_OR_RETURN(buffers_, GemmBuffers::Create(num_rows, shape_.k, num_rows, shape_.n,
                                                          workspace_bytes, setup_.meter->stream()));
    return absl::OkStatus();
  }
  kernels::cuda::GemmContext Context(CublasLt* lt) const {
    return {.caps = setup_.meter->caps(),
            .cublaslt = lt,
            .workspace = buffers_.workspace(),
            .workspace_bytes = buffers_.workspace_bytes()};
  }
  // Of call `call`.
  const Routing& routing(int call) const { return routings_[static_cast<size_t>(call)]; }
  size_t copy(int call) const { return static_cast<size_t>(call) % copies_.size(); }

  const CudaGemmShape shape_;
  const GemmDesc desc_;
  const GemmSetup setup_;
  std::vector<std::vector<std::unique_ptr<kernels::PackedWeight>>> copies_;  // of all experts
  GemmBuffers buffers_;
  int64_t num_tokens_ = 0;
  std::vector<Routing> routings_;
};

class GroupedProduct final : public ExpertProduct {
 public:
  static absl::StatusOr<std::unique_ptr<GemmSubject>> Create(const CudaGemmShape& shape,
                                                             const GemmDesc& desc,
                                                             const GemmSetup& setup) {
    std::unique_ptr<GroupedProduct> product(new GroupedProduct(shape, desc, setup));
    NIBBLE_RETURN_IF_ERROR(product->MakeWeights());
    for (const auto& experts : product->copies_) {
      std::vector<const DeviceWeight*> weights;
      for (const auto& expert : experts) {
        weights.push_back(dynamic_cast<const DeviceWeight*>(expert.get()));
      }
      NIBBLE_ASSIGN_OR_RETURN(product->grouped_.emplace_back(), GroupedWeights::Create(weights));
    }
    NIBBLE_RETURN_IF_ERROR(product->MakeBuffers(kernels::cuda::WorkspaceBytes(
        desc, shape.NumRows(setup.max_tokens), setup.meter->caps(), /*has_cublaslt=*/false)));
    return product;
  }

  absl::Status Run(int call) override {
    const cudaStream_t stream = setup_.meter->stream();
    const int64_t num_rows = shape_.NumRows(num_tokens_);
    if (is_int8()) {
      NIBBLE_RETURN_IF_ERROR(buffers_.Quantize(shape_.gathers ? num_tokens_ : num_rows, stream));
    }
    return kernels::cuda::RunGrouped(
        grouped_[copy(call)],
        {.max_rows = num_rows,
         .offsets = routing(call).device_offsets.data(),
         .a_rows = shape_.gathers ? routing(call).device_rows.data() : nullptr,
         .a = buffers_.A(),
         .a8 = buffers_.A8(),
         .d = buffers_.D()},
        Context(nullptr), stream);
  }
  std::string kernel() const override {
    const kernels::cuda::GemmPlan plan = kernels::cuda::ChooseGrouped(
        desc_, shape_.num_experts, shape_.NumRows(num_tokens_), setup_.meter->caps());
    return fmt::format("{} n{}", kernels::cuda::ToString(plan.kernel), plan.tile_n);
  }

 private:
  using ExpertProduct::ExpertProduct;

  std::vector<GroupedWeights> grouped_;  // of copies_
};

// A product for each expert that was chosen, whose numbers of rows the host knows (in a server only
// the device does), and whose rows lie together already.
class LtExpertProduct final : public ExpertProduct {
 public:
  static absl::StatusOr<std::unique_ptr<GemmSubject>> Create(const CudaGemmShape& shape,
                                                             const GemmDesc& desc,
                                                             const GemmSetup& setup) {
    std::unique_ptr<LtExpertProduct> product(new LtExpertProduct(shape, desc, setup));
    NIBBLE_RETURN_IF_ERROR(product->MakeWeights());
    NIBBLE_RETURN_IF_ERROR(product->MakeBuffers(kernels::cuda::WorkspaceBytes(
        desc, setup.max_tokens, setup.meter->caps(), /*has_cublaslt=*/true)));
    return product;
  }

  absl::Status Run(int call) override {
    const std::vector<int32_t>& offsets = routing(call).offsets;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) {
      NIBBLE_RETURN_IF_ERROR(
          kernels::cuda::Run(dynamic_cast<const DeviceWeight&>(*copies_[copy(call)][e]),
                             {.m = offsets[e + 1] - offsets[e],
                              .a = buffers_.A(offsets[e]),
                              .d = buffers_.D(offsets[e])},
                             Context(setup_.lt), setup_.meter->stream()));
    }
    return absl::OkStatus();
  }
  std::string kernel() const override { return "cublaslt, a call each"; }

 private:
  using ExpertProduct::ExpertProduct;
};

}  // namespace

std::vector<GemmVariant> ExpertVariants(const CudaGemmShape& shape, const GemmSetup& setup) {
  std::vector<GemmVariant> variants;
  if (setup.lt != nullptr) {
    variants.push_back({"bf16-cublaslt", [shape, setup] {
                          return LtExpertProduct::Create(shape, DescOf("bf16", shape), setup);
                        }});
  }
  for (const char* const kind : {"bf16", "w4a8-folded", "w4a8-integer", "w4a8-float", "w8a8"}) {
    variants.push_back({kind, [shape, setup, kind] {
                          return GroupedProduct::Create(shape, DescOf(kind, shape), setup);
                        }});
  }
  return variants;
}

}  // namespace nibble::bench
