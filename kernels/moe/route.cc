// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/route.h"

#include "base/check.h"
#include "kernels/device/pick_by_isa.h"
#include "kernels/moe/route_row.h"

namespace nibble::kernels {
namespace {

// Some microseconds of work: fewer tokens do not pay for waking a thread.
constexpr int64_t kTokensPerPiece = 32;

}  // namespace

void Route(const RouteArgs& args, Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK_LE(args.num_experts, kMaxExperts);
  NIBBLE_CHECK_GE(args.num_experts_per_tok, 1);
  NIBBLE_CHECK_LE(args.num_experts_per_tok, args.num_experts);
  const auto route = PickByIsa(isa, ref::RouteToken, avx2::RouteToken, avx512vnni::RouteToken);
  pool->ParallelFor(args.num_tokens, kTokensPerPiece, [&](int64_t begin, int64_t end) {
    alignas(64) int32_t keys[kMaxExperts];
    for (int64_t token = begin; token < end; ++token) {
      route({.num_experts = args.num_experts,
             .num_experts_per_tok = args.num_experts_per_tok,
             .renormalize = args.renormalize,
             .logits = args.logits + token * args.num_experts,
             .keys = keys,
             .expert_ids = args.expert_ids + token * args.num_experts_per_tok,
             .weights = args.weights + token * args.num_experts_per_tok});
    }
  });
}

}  // namespace nibble::kernels
