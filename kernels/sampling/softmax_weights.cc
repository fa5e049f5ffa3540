// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/sampling/softmax_weights.h"

#include <algorithm>

#include "kernels/device/pick_by_isa.h"
#include "kernels/sampling/softmax_weights_chunk.h"

namespace nibble::kernels {
namespace {

// visit(first logit, sum) for every chunk; weights are written where asked for.
template <typename Visit>
void ForChunks(const SoftmaxWeights& args, float* weights, Isa isa, const Visit& visit) {
  const WeighChunkFunction weigh =
      PickByIsa(isa, ref::WeighChunk, avx2::WeighChunk, avx512vnni::WeighChunk);
  for (int64_t begin = 0; begin < args.count; begin += kWeightChunk) {
    visit(begin, weigh({.logits = args.logits + begin,
                        .count = std::min(kWeightChunk, args.count - begin),
                        .max_logit = args.max_logit,
                        .temperature = args.temperature,
                        .min_exponent = args.min_exponent},
                       weights == nullptr ? nullptr : weights + begin));
  }
}

}  // namespace

void WeighLogits(const SoftmaxWeights& args, float* weights, Isa isa) {
  ForChunks(args, weights, isa, [](int64_t, double) {});
}

void SumWeights(const SoftmaxWeights& args, double* sums, Isa isa) {
  ForChunks(args, nullptr, isa,
            [sums](int64_t begin, double sum) { sums[begin / kWeightChunk] = sum; });
}

}  // namespace nibble::kernels
