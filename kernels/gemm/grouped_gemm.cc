// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/grouped_gemm.h"

#include "kernels/device/thread_scratch.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

struct GroupedJobs {};  // scratch memory of the calling thread

GemmJob JobOf(const GroupWeight& w, const GroupedGemmArgs& args) {
  const int64_t first = args.offsets[w.group];
  const int64_t rows = args.offsets[w.group + 1] - first;
  GemmJob job = {.weight = nullptr,
                 .args = {.m = rows,
                          .a = args.a,
                          .a_stride = args.a_stride,
                          .a8 = args.a8,
                          .d = args.d + first * args.d_stride + w.column,
                          .d_stride = args.d_stride},
                 .a_rows = nullptr};
  if (args.a_rows != nullptr) {
    job.a_rows = args.a_rows + first;
  } else if (TakesInt8(w.weight->desc().format)) {
    job.args.a8 = {args.a8.values + first * args.a8.stride, args.a8.scales + first,
                   args.a8.sums + first, args.a8.stride};
  } else {
    job.args.a = args.a + first * args.a_stride;
  }
  // Only pack functions of the catalog make packed weights.
  job.weight = &static_cast<const GemmWeight*>(w.weight)->ForRows(rows);
  return job;
}

}  // namespace

void RunGrouped(std::span<const GroupWeight> weights, const GroupedGemmArgs& args,
                ThreadPool* pool) {
  auto* const jobs = ThreadScratch<GroupedJobs, GemmJob>(weights.size());
  size_t num_done = 0;
  size_t num_jobs = weights.size();  // known after the first round
  for (const GemmLoops loops : kAllGemmLoops) {
    if (num_done == num_jobs) break;
    size_t num_other = 0;
    size_t count = 0;
    for (const GroupWeight& w : weights) {
      // Without rows nothing of a weight is read.
      if (args.offsets[w.group] == args.offsets[w.group + 1]) continue;
      if (w.weight->desc().n == 0) continue;
      const GemmJob job = JobOf(w, args);
      if (job.weight->loops() == loops) {
        jobs[count++] = job;
      } else {
        ++num_other;
      }
    }
    if (count > 0) MultiplyJobs(loops, {jobs, count}, pool);
    num_done += count;
    num_jobs = count + num_other;
  }
}

}  // namespace nibble::kernels
