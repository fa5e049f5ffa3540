// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as the codes of two ranks: they decode, sum and reduce to some floats, the same ones on
// every instruction set, and nothing is read beyond them. The first bytes choose the codec and the
// rows.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "comm/codec/codec.h"

namespace {

using nibble::Isa;
using nibble::comm::CodecDesc;
using nibble::comm::RowGroups;

// Exactly as large as it must be, so that sanitizers see a byte too many.
std::vector<uint8_t> Take(const uint8_t** data, size_t* size, int64_t bytes) {
  std::vector<uint8_t> taken(static_cast<size_t>(bytes));
  const size_t given = std::min(taken.size(), *size);
  std::copy_n(*data, given, taken.begin());
  *data += given;
  *size -= given;
  return taken;
}

void Demand(bool condition) {
  if (!condition) std::abort();
}

bool SameFloat(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(a)) == 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  constexpr int kBits[] = {2, 3, 4, 5, 6, 8, 16, 32};
  const CodecDesc desc{.bits = kBits[data[0] % 8],
                       .group_size = 32 << (data[0] / 8 % 3),
                       .scale = static_cast<nibble::comm::ScaleFormat>(data[1] & 1),
                       .spikes = (data[1] & 2) != 0,
                       .rotation = (data[1] & 4) != 0};
  const RowGroups groups{1 + data[2] % 200, desc.group_size};
  const int64_t num_rows = 1 + data[3] % 3;
  const int64_t count = num_rows * groups.groups_per_row();
  data += 4;
  size -= 4;
  Demand(Validate(desc).ok());
  const int64_t bytes = EncodedBytes(desc, count);
  const std::vector<uint8_t> codes[2] = {Take(&data, &size, bytes), Take(&data, &size, bytes)};
  const uint8_t* const pieces[] = {codes[0].data(), codes[1].data()};

  std::vector<float> expected(static_cast<size_t>(num_rows * groups.row_size));
  std::vector<uint8_t> expected_sum(codes[0].size());
  DecodeSum(desc, groups, pieces, 2, 0, count, expected.data(), Isa::kRef);
  ReduceEncoded(desc, pieces, 2, count, expected_sum.data(), Isa::kRef);
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512Vnni}) {
    if (isa > nibble::HostCpuFeatures().Best()) continue;
    std::vector<float> x(expected.size());
    std::vector<uint8_t> sum(codes[0].size());
    DecodeSum(desc, groups, pieces, 2, 0, count, x.data(), isa);
    Demand(std::equal(x.begin(), x.end(), expected.begin(), SameFloat));
    ReduceEncoded(desc, pieces, 2, count, sum.data(), isa);
    // bf16 and float32 pass a NaN on, and which of two a sum keeps is the compiler's choice.
    if (desc.is_integer()) Demand(sum == expected_sum);
    // What decodes is coded again.
    Encode(desc, groups, x.data(), 0, count, sum.data(), isa);
  }
  return 0;
}
