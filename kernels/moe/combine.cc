// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/combine.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/device/pick_by_isa.h"
#include "kernels/device/row_loop.h"
#include "kernels/moe/combine_row.h"

namespace nibble::kernels {
namespace {

using CombineFunction = void (*)(const CombineRow&);

constexpr int64_t kStep = 64;  // columns that the AVX-512 variant computes at a time

// Columns [begin, end) of one token: kCombineRows of its experts at a time, the later ones added to
// what the earlier ones left. A float keeps its bits in memory, so that this changes nothing.
void CombineToken(const CombineArgs& args, int64_t token, int64_t begin, int64_t end,
                  CombineFunction combine) {
  const int64_t k = args.num_experts_per_tok;
  float* const out = args.out + token * args.out_stride + begin;
  CombineRow row{.columns = end - begin, .add = args.accumulate, .out = out};
  for (int64_t j = 0; j < k; ++j) {
    const int32_t from = args.row_of[token * k + j];
    if (from < 0) continue;
    if (row.num_rows == kCombineRows) {
      combine(row);
      row.add = true;
      row.num_rows = 0;
    }
    row.y[row.num_rows] = args.y + from * args.y_stride + begin;
    row.weights[row.num_rows] = args.weights[token * k + j];
    ++row.num_rows;
  }
  if (row.num_rows > 0) {
    combine(row);
  } else if (!args.accumulate) {
    std::fill_n(out, end - begin, 0.0F);
  }
}

}  // namespace

void Combine(const CombineArgs& args, Isa isa, ThreadPool* pool) {
  NIBBLE_CHECK_GE(args.num_experts_per_tok, 1);
  if (args.hidden == 0 || args.num_tokens == 0) return;
  const CombineFunction combine =
      PickByIsa(isa, ref::CombineColumns, avx2::CombineColumns, avx512vnni::CombineColumns);
  // Many tokens are divided among the threads whole, few (decode) are cut inside their rows.
  const int64_t columns_per_piece =
      std::max<int64_t>(1, kPieceElements / kStep / args.num_experts_per_tok) * kStep;
  const int64_t pieces_per_token = (args.hidden + columns_per_piece - 1) / columns_per_piece;
  const int64_t grain = std::max<int64_t>(1, columns_per_piece / args.hidden);
  pool->ParallelFor(args.num_tokens * pieces_per_token, grain, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece % pieces_per_token * columns_per_piece;
      CombineToken(args, piece / pieces_per_token, first,
                   std::min(first + columns_per_piece, args.hidden), combine);
    }
  });
}

}  // namespace nibble::kernels
