// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Dense and W4A16 weights in panels times float rows, of one product or of many, in one parallel
// loop. The kernels read the rows where they are.

#include <algorithm>

#include "kernels/device/thread_scratch.h"
#include "kernels/gemm/panel_loops.h"
#include "kernels/gemm/work_list.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kMaxRows = 192;  // of a block
// What reading a panel from memory costs, in rows to multiply it with.
constexpr int64_t kPanelCost = 4;

struct FloatWork {};  // scratch memory of the calling thread

const FloatPanels& WeightOf(const GemmJob& job) {
  return static_cast<const FloatPanels&>(*job.weight);
}

// Rows come in equal blocks of whole tiles; a block's panel of weights is read once.
struct Blocks {
  int64_t count;
  int64_t rows;
  explicit Blocks(const GemmJob& job) {
    const int64_t tile_rows = WeightOf(job).kernels().tile_rows;
    count = CeilDiv(job.args.m, kMaxRows / tile_rows * tile_rows);
    rows = RoundUp(CeilDiv(job.args.m, count), tile_rows);
    count = CeilDiv(job.args.m, rows);
  }
};

void MultiplyUnits(const GemmJob& job, int64_t begin, int64_t end) {
  const FloatPanels& weight = WeightOf(job);
  const DenseKernels& kernels = weight.kernels();
  const GemmArgs& args = job.args;
  const Blocks blocks(job);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit % blocks.count * blocks.rows;
    const int64_t panel = unit / blocks.count;
    const int64_t column = panel * kernels.panel;
    DenseBlock block = weight.Panel(panel);
    block.k = weight.desc().k;
    block.columns = std::min(kernels.panel, weight.desc().n - column);
    block.bias = args.bias == nullptr ? nullptr : args.bias + column;
    block.a = job.a_rows == nullptr ? args.a + first * args.a_stride : args.a;
    block.a_stride = args.a_stride;
    block.a_rows = job.a_rows == nullptr ? nullptr : job.a_rows + first;
    block.rows = std::min(blocks.rows, args.m - first);
    block.d = args.d + first * args.d_stride + column;
    block.d_stride = args.d_stride;
    kernels.multiply(block);
  }
}

}  // namespace

void MultiplyFloatPanels(std::span<const GemmJob> jobs, ThreadPool* pool) {
  auto* const items = ThreadScratch<FloatWork, WorkItem>(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const Blocks blocks(jobs[i]);
    const FloatPanels& weight = WeightOf(jobs[i]);
    items[i] = {.units = CeilDiv(weight.desc().n, weight.kernels().panel) * blocks.count,
                .unit_cost = jobs[i].args.m / blocks.count + kPanelCost};
  }
  ForWork({items, jobs.size()}, pool, [&](int64_t i, int64_t begin, int64_t end) {
    MultiplyUnits(jobs[static_cast<size_t>(i)], begin, end);
  });
}

}  // namespace nibble::kernels
