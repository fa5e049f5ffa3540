// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/grouped_gemm.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace nibble::kernels {

void RunGrouped(std::span<const GroupWeight> weights, const GroupedGemmArgs& args,
                ThreadPool* pool) {
  std::vector<float> a;
  std::vector<int8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  for (const GroupWeight& w : weights) {
    const int64_t first = args.offsets[w.group];
    const int64_t rows = args.offsets[w.group + 1] - first;
    if (rows == 0) continue;
    const GemmDesc& desc = w.weight->desc();
    const auto k = static_cast<size_t>(desc.k);
    GemmArgs gemm = {
        .m = rows, .d = args.d + first * args.d_stride + w.column, .d_stride = args.d_stride};
    const auto source = [&](int64_t i) {
      return args.a_rows == nullptr ? first + i : int64_t{args.a_rows[first + i]};
    };
    if (TakesInt8(desc.format)) {
      values.resize(static_cast<size_t>(rows) * k);
      scales.resize(static_cast<size_t>(rows));
      sums.resize(static_cast<size_t>(rows));
      for (int64_t i = 0; i < rows; ++i) {
        const auto to = static_cast<size_t>(i);
        std::memcpy(values.data() + to * k, args.a8.values + source(i) * args.a8.stride, k);
        scales[to] = args.a8.scales[source(i)];
        sums[to] = args.a8.sums[source(i)];
      }
      gemm.a8 = {
          .values = values.data(), .scales = scales.data(), .sums = sums.data(), .stride = desc.k};
    } else {
      a.resize(static_cast<size_t>(rows) * k);
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(a.data() + static_cast<size_t>(i) * k, args.a + source(i) * args.a_stride,
                    k * sizeof(float));
      }
      gemm.a = a.data();
      gemm.a_stride = desc.k;
    }
    Run(*w.weight, gemm, pool);
  }
}

}  // namespace nibble::kernels
