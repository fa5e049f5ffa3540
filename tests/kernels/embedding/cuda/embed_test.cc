// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/embedding/cuda/embed.h"

#include <numeric>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/device/device_rows.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::Random;
using ::nibble::testing::Rows;

class DeviceEmbed : public ::nibble::testing::RowsTest {};

TEST_F(DeviceEmbed, RowsOfTheTableAndZerosForOthersTokens) {
  Random random(1);
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    for (const int64_t hidden : {8, 264, 2056}) {
      const int64_t begin = 100;
      const int64_t count = 7;
      const Rows table = MakeRows(dtype, count, hidden, hidden, random.Normals(count * hidden));
      const std::vector<int32_t> ids = {100, 106, 99, 103, 107, -1, 0, 103, INT32_MAX};
      const auto device_ids = Upload(ids);
      const auto num_tokens = static_cast<int64_t>(ids.size());
      Rows out = MakeOutput(DType::kF32, num_tokens, hidden, hidden);
      ASSERT_TRUE(Embed({.num_tokens = num_tokens,
                         .hidden = hidden,
                         .token_ids = device_ids.data(),
                         .table = table.bytes.data(),
                         .dtype = dtype,
                         .begin_id = begin,
                         .end_id = begin + count,
                         .out = reinterpret_cast<float*>(out.bytes.data())},
                        stream_.get())
                      .ok());
      Read(&out);
      std::vector<float> expected;
      for (const int64_t id : ids) {
        const bool own = id >= begin && id < begin + count;
        for (int64_t i = 0; i < hidden; ++i) {
          expected.push_back(own ? table.Row(id - begin)[i] : 0.0F);
        }
      }
      EXPECT_TRUE(AllEqual<float>({out.values.data(), num_tokens, hidden, hidden},
                                  {expected.data(), num_tokens, hidden, hidden}));
    }
  }
}

TEST_F(DeviceEmbed, RefusesWhatItHasNot) {
  EXPECT_EQ(Embed({.num_tokens = 1, .hidden = 9}, stream_.get()).message(),
            "hidden is 9, wanted is a multiple of 8, 1048576 at most");
  EXPECT_EQ(
      Embed({.num_tokens = 1, .hidden = 8, .begin_id = 4, .end_id = 3}, stream_.get()).message(),
      "the table is of tokens 4 to 3, wanted is a range");
  EXPECT_EQ(Embed({.num_tokens = 1, .hidden = 8, .dtype = DType::kI8}, stream_.get()).code(),
            absl::StatusCode::kInvalidArgument);
}

class DeviceGatherRows : public ::nibble::testing::DeviceTest {};

TEST_F(DeviceGatherRows, RowsOfWholeAndOddWords) {
  for (const int64_t row_bytes : {4, 12, 16, 20, 1028, 4096, 5120}) {
    const int64_t words = row_bytes / 4;
    std::vector<uint32_t> from(static_cast<size_t>(9 * words + 1));
    std::iota(from.begin(), from.end(), 1U);
    const auto device_from = Upload(from);
    const std::vector<int32_t> rows = {8, 0, 3, 3, 7};
    const auto device_rows = Upload(rows);
    for (const int64_t shift : {0, 1}) {  // words: not aligned to 16 bytes
      const auto to = Upload(std::vector<uint32_t>(static_cast<size_t>(5 * words + 2), 0U));
      ASSERT_TRUE(GatherRows(device_from.data() + shift, device_rows.data(), 5, row_bytes,
                             to.data() + shift, stream_.get())
                      .ok());
      const std::vector<uint32_t> result = Download(to);
      std::vector<uint32_t> expected(static_cast<size_t>(shift), 0U);
      for (const int32_t row : rows) {
        for (int64_t i = 0; i < words; ++i) {
          expected.push_back(from[static_cast<size_t>(row * words + i + shift)]);
        }
      }
      expected.resize(result.size(), 0U);
      EXPECT_EQ(result, expected) << row_bytes << " bytes from word " << shift;
    }
  }
}

TEST_F(DeviceGatherRows, RefusesWhatItHasNot) {
  EXPECT_EQ(GatherRows(nullptr, nullptr, 1, 6, nullptr, stream_.get()).message(),
            "rows have 6 bytes, wanted is a multiple of 4, 1073741824 at most");
  EXPECT_EQ(GatherRows(reinterpret_cast<void*>(2), nullptr, 1, 8, nullptr, stream_.get()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(GatherRows(nullptr, nullptr, 0, 8, nullptr, stream_.get()).ok());
}

}  // namespace
}  // namespace nibble::kernels::cuda
