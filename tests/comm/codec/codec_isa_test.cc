// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Every instruction set writes the bytes of the reference and reads its floats, and nothing beside
// them.

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "comm/codec/codec.h"
#include "tests/comm/codec/codec_cases.h"

namespace nibble::comm {
namespace {

using ::nibble::testing::Random;

constexpr uint8_t kCanary = 0xc5;
constexpr float kCanaryFloat = 12345.0F;
constexpr size_t kCanaries = 64;

// Bytes with canaries behind them; at 16, not more, from alignment to 64.
class Bytes {
 public:
  explicit Bytes(int64_t size) : size_(static_cast<size_t>(size)) {
    storage_.assign(size_ + kCanaries + 80, kCanary);
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    data_ = storage_.data() + (64 - address % 64) % 64 + 16;
  }
  Bytes(const Bytes& other) : Bytes(static_cast<int64_t>(other.size_)) {
    std::copy_n(other.data_, size_ + kCanaries, data_);
  }
  Bytes& operator=(const Bytes& other) = delete;

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  bool Intact() const {
    return std::all_of(data_ + size_, data_ + size_ + kCanaries,
                       [](uint8_t byte) { return byte == kCanary; });
  }
  std::string Content() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  size_t size_;
  std::vector<uint8_t> storage_;
  uint8_t* data_;
};

// NaN has no bits to compare: which of two NaNs a sum keeps, compilers may choose.
::testing::AssertionResult SameFloats(const std::vector<float>& actual,
                                      const std::vector<float>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
    if (std::memcmp(&actual[i], &expected[i], sizeof(float)) != 0) {
      return ::testing::AssertionFailure()
             << "value " << i << ": " << actual[i] << ", the reference has " << expected[i];
    }
  }
  return ::testing::AssertionSuccess();
}

class CodecIsaTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this machine has no " << ToString(GetParam());
    }
  }

  // Codes, decodes and sums `pieces` of `values` [num_pieces, num_rows * row_size] from group
  // `first` on.
  static void Compare(const CodecDesc& desc, const RowGroups& groups, int64_t num_rows,
                      int64_t first, const std::vector<std::vector<float>>& values) {
    const int64_t count = num_rows * groups.groups_per_row() - first;
    std::vector<Bytes> codes;
    for (const std::vector<float>& x : values) {
      Bytes expected(EncodedBytes(desc, count));
      Bytes actual(EncodedBytes(desc, count));
      Encode(desc, groups, x.data(), first, count, expected.data(), Isa::kRef);
      Encode(desc, groups, x.data(), first, count, actual.data(), GetParam());
      ASSERT_TRUE(actual.Intact());
      ASSERT_EQ(actual.Content(), expected.Content()) << "encoding";
      codes.push_back(actual);
    }
    CompareDecoding(desc, groups, num_rows, first, codes);
  }

  static void CompareDecoding(const CodecDesc& desc, const RowGroups& groups, int64_t num_rows,
                              int64_t first, const std::vector<Bytes>& codes) {
    const int64_t count = num_rows * groups.groups_per_row() - first;
    std::vector<Bytes> copies = codes;
    std::vector<const uint8_t*> pieces;
    for (const Bytes& copy : copies) pieces.push_back(copy.data());
    std::vector<float> expected(static_cast<size_t>(num_rows * groups.row_size) + kCanaries,
                                kCanaryFloat);
    for (int num = 1; num <= static_cast<int>(pieces.size()); ++num) {
      std::vector<float> actual = expected;
      DecodeSum(desc, groups, pieces.data(), num, first, count, expected.data(), Isa::kRef);
      DecodeSum(desc, groups, pieces.data(), num, first, count, actual.data(), GetParam());
      ASSERT_TRUE(SameFloats(actual, expected)) << "sum of " << num;
      if (num == 1) {
        actual.assign(actual.size(), kCanaryFloat);
        Decode(desc, groups, pieces[0], first, count, actual.data(), GetParam());
        ASSERT_TRUE(SameFloats(actual, expected)) << "decoding";
      }
      Bytes expected_code(EncodedBytes(desc, count));
      Bytes code(EncodedBytes(desc, count));
      ReduceEncoded(desc, pieces.data(), num, count, expected_code.data(), Isa::kRef);
      ReduceEncoded(desc, pieces.data(), num, count, code.data(), GetParam());
      ASSERT_TRUE(code.Intact());
      if (desc.is_integer()) {
        ASSERT_EQ(code.Content(), expected_code.Content()) << "reduction of " << num;
        continue;
      }
      std::vector<float> sums = expected;
      Decode(desc, groups, expected_code.data(), first, count, expected.data(), Isa::kRef);
      Decode(desc, groups, code.data(), first, count, sums.data(), Isa::kRef);
      ASSERT_TRUE(SameFloats(sums, expected)) << "reduction of " << num;
    }
    // In place.
    Bytes apart(EncodedBytes(desc, count));
    ReduceEncoded(desc, pieces.data(), static_cast<int>(pieces.size()), count, apart.data(),
                  GetParam());
    ReduceEncoded(desc, pieces.data(), static_cast<int>(pieces.size()), count, copies.back().data(),
                  GetParam());
    ASSERT_EQ(copies.back().Content(), apart.Content()) << "reduction in place";
  }
};

TEST_P(CodecIsaTest, EqualsTheReference) {
  Random random(1);
  for (const CodecDesc& desc : AllCodecs()) {
    for (const int64_t row_size : {1, 31, 127, 128, 129, 200, 4096 + 7}) {
      const RowGroups groups{row_size, desc.group_size};
      const int64_t num_rows = row_size > 1000 ? 1 : 3;
      const int64_t first = random.Int(0, groups.groups_per_row() - 1);
      std::vector<std::vector<float>> values;
      for (int piece = 0; piece < 3; ++piece) {
        values.push_back(HardValues(&random, num_rows * row_size, piece < 2));
      }
      SCOPED_TRACE(ToString(desc) + " rows of " + std::to_string(row_size));
      ASSERT_NO_FATAL_FAILURE(Compare(desc, groups, num_rows, first, values));
    }
  }
}

// What peers may send instead of codes.
TEST_P(CodecIsaTest, ReadsAnyBytesAsTheReferenceDoes) {
  Random random(2);
  for (const CodecDesc& desc : AllCodecs()) {
    const RowGroups groups{500, desc.group_size};
    const int64_t count = 2 * groups.groups_per_row();
    for (int round = 0; round < 4; ++round) {
      std::vector<Bytes> codes;
      for (int piece = 0; piece < 2; ++piece) {
        Bytes bytes(EncodedBytes(desc, count));
        for (int64_t i = 0; i < EncodedBytes(desc, count); ++i) {
          bytes.data()[i] = round == 3 ? 0xff : static_cast<uint8_t>(random.Bits());
        }
        codes.push_back(bytes);
      }
      SCOPED_TRACE(ToString(desc));
      ASSERT_NO_FATAL_FAILURE(CompareDecoding(desc, groups, 2, 0, codes));
    }
  }
}

// Ties, ends of the range, and scales on both sides of what a format can hold.
TEST_P(CodecIsaTest, RoundsAsTheReferenceDoes) {
  Random random(3);
  for (const CodecDesc& desc : AllCodecs()) {
    if (desc.rotation) continue;
    const RowGroups groups{desc.group_size * 64, desc.group_size};
    std::vector<float> x(static_cast<size_t>(groups.row_size));
    for (size_t i = 0; i < x.size(); ++i) {
      const auto group = static_cast<int>(i) / desc.group_size;
      const float scale = std::ldexp(1.0F, (group - 32) * 4) * (group % 3 == 0 ? 1.001F : 1.0F);
      x[i] = scale * 0.5F * static_cast<float>(random.Int(-255, 255));
    }
    SCOPED_TRACE(ToString(desc));
    ASSERT_NO_FATAL_FAILURE(Compare(desc, groups, 1, 0, {x}));
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas, CodecIsaTest, ::testing::Values(Isa::kAvx2, Isa::kAvx512Vnni),
                         [](const auto& param) { return std::string(ToString(param.param)); });

}  // namespace
}  // namespace nibble::comm
