// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/compressed_tensors.h"

#include <cmath>
#include <cstring>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/float16.h"
#include "tests/testing/random.h"
#include "tests/testing/temp_dir.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using nibble::testing::TempDir;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Int4Weight RandomWeight(int64_t n, int64_t k, int64_t group_size) {
  nibble::testing::Random random(7);
  Int4Weight weight = {.n = n, .k = k, .group_size = group_size};
  weight.codes.resize(static_cast<size_t>(n * weight.row_bytes()));
  for (uint8_t& byte : weight.codes) byte = static_cast<uint8_t>(random.Bits());
  weight.scales = random.Normals(n * weight.num_groups(), 0.01F);
  return weight;
}

void Write(const std::string& dir, std::string_view name, const Int4Weight& weight) {
  auto writer = SafetensorsWriter::Create(
      dir, PackedInt4Specs(
               {.name = name, .n = weight.n, .k = weight.k, .group_size = weight.group_size}));
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(WritePackedInt4(name, weight, &*writer).ok());
  ASSERT_TRUE(writer->Finish().ok());
}

TEST(CompressedTensorsTest, RoundTripKeepsEveryBit) {
  for (const auto& [n, k, group_size] :
       {std::tuple{5, 64, 32}, {3, 256, 128}, {1, 8, 128}, {7, 72, 32}}) {
    const TempDir dir;
    const Int4Weight weight = RandomWeight(n, k, group_size);
    Write(dir.path(), "m.q_proj", weight);
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_TRUE(IsPackedInt4(*checkpoint, "m.q_proj"));
    EXPECT_FALSE(IsPackedInt4(*checkpoint, "m"));
    const auto read =
        ReadPackedInt4(*checkpoint, {.name = "m.q_proj", .n = n, .k = k, .group_size = group_size});
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->codes, weight.codes);
    EXPECT_EQ(read->scales, weight.scales);
    EXPECT_TRUE(read->zero_points.empty());
  }
}

TEST(CompressedTensorsTest, PerChannelScalesAreOneColumn) {
  const TempDir dir;
  const Int4Weight weight = RandomWeight(5, 64, 64);
  Write(dir.path(), "m", weight);
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(checkpoint->Find("m.weight_scale")->shape, ElementsAre(5, 1));
  const auto read = ReadPackedInt4(*checkpoint, {.name = "m", .n = 5, .k = 64, .group_size = 64});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->scales, weight.scales);
}

TEST(CompressedTensorsTest, Int8RoundTrip) {
  nibble::testing::Random random(8);
  kernels::Int8Weight weight = {.n = 3, .k = 40};
  for (int i = 0; i < 120; ++i) weight.codes.push_back(static_cast<int8_t>(random.Bits()));
  weight.scales = random.Normals(3, 0.01F);
  const TempDir dir;
  auto writer = SafetensorsWriter::Create(dir.path(), Int8Specs({.name = "m", .n = 3, .k = 40}));
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(WriteInt8("m", weight, &*writer).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->Find("m.weight")->dtype, DType::kI8);
  EXPECT_THAT(checkpoint->Find("m.weight_scale")->shape, ElementsAre(3, 1));
  const auto read = ReadInt8(*checkpoint, {.name = "m", .n = 3, .k = 40});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->codes, weight.codes);
  EXPECT_EQ(read->scales, weight.scales);
  EXPECT_THAT(std::string(ReadInt8(*checkpoint, {.name = "m", .n = 3, .k = 41}).status().message()),
              HasSubstr("m.weight"));
}

// The layout itself, by hand: nibble i of word c is column 8c + i, code 8 is zero.
TEST(CompressedTensorsTest, NibbleOrderAndScaleTypes) {
  for (const DType scale_type : {DType::kF32, DType::kBf16, DType::kF16}) {
    const TempDir dir;
    auto writer = SafetensorsWriter::Create(dir.path(), {{"w.weight_packed", DType::kI32, {1, 2}},
                                                         {"w.weight_scale", scale_type, {1, 1}},
                                                         {"w.weight_shape", DType::kI64, {2}}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    const uint32_t packed[2] = {0x76543210U, 0xfedcba98U};
    const float scale = 0.5F;
    const uint16_t half =
        scale_type == DType::kF16 ? ToFloat16(scale).bits : ToBFloat16(scale).bits;
    const int64_t shape[2] = {1, 16};
    const auto bytes = [](const void* data, size_t size) {
      return std::span<const uint8_t>(static_cast<const uint8_t*>(data), size);
    };
    ASSERT_TRUE(writer->Write("w.weight_packed", bytes(packed, sizeof(packed))).ok());
    const bool is_float = scale_type == DType::kF32;
    ASSERT_TRUE(
        writer->Write("w.weight_scale", is_float ? bytes(&scale, 4) : bytes(&half, 2)).ok());
    ASSERT_TRUE(writer->Write("w.weight_shape", bytes(shape, sizeof(shape))).ok());
    ASSERT_TRUE(writer->Finish().ok());
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto weight =
        ReadPackedInt4(*checkpoint, {.name = "w", .n = 1, .k = 16, .group_size = 16});
    ASSERT_TRUE(weight.ok()) << weight.status();
    for (int column = 0; column < 16; ++column) {
      EXPECT_EQ(weight->Code(0, column), column);
      EXPECT_EQ(weight->Dequantize(0, column), 0.5F * static_cast<float>(column - 8));
    }
  }
}

// One fault at a time in an otherwise good module.
class FaultTest : public ::testing::Test {
 protected:
  // Writes the specs (zeros, but a right weight_shape) and reads them as a [4, 32] module.
  absl::Status Read(const std::vector<TensorSpec>& specs, std::array<int64_t, 2> shape = {4, 32},
                    float scale = 1.0F) {
    const TempDir dir;
    auto writer = SafetensorsWriter::Create(dir.path(), specs);
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (const TensorSpec& spec : specs) {
      size_t size = SizeOf(spec.dtype);
      for (const int64_t dim : spec.shape) size *= static_cast<size_t>(dim);
      std::vector<uint8_t> bytes(size);
      if (spec.dtype == DType::kI64) std::memcpy(bytes.data(), shape.data(), size);
      if (spec.dtype == DType::kF32) std::memcpy(bytes.data(), &scale, sizeof(scale));
      EXPECT_TRUE(writer->Write(spec.name, bytes).ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
    const auto checkpoint = Checkpoint::Open(dir.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return ReadPackedInt4(*checkpoint, module_).status();
  }
  void ExpectFault(const absl::Status& status, const char* part) {
    EXPECT_FALSE(status.ok()) << part;
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }

  PackedModule module_ = {.name = "m", .n = 4, .k = 32, .group_size = 16};
  std::vector<TensorSpec> good_ = PackedInt4Specs(module_);
};

TEST_F(FaultTest, EachIsRefusedByName) {
  ASSERT_TRUE(Read(good_).ok());
  for (size_t i = 0; i < good_.size(); ++i) {
    std::vector<TensorSpec> specs = good_;
    specs.erase(specs.begin() + static_cast<std::ptrdiff_t>(i));
    const absl::Status status = Read(specs);
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    ExpectFault(status, good_[i].name.c_str());
  }
  const auto changed = [&](size_t i, TensorSpec spec) {
    std::vector<TensorSpec> specs = good_;
    specs[i] = std::move(spec);
    return specs;
  };
  ExpectFault(Read(changed(0, {"m.weight_packed", DType::kI32, {4, 5}})), "[4, 5]");
  ExpectFault(Read(changed(0, {"m.weight_packed", DType::kF32, {4, 4}})), "must be int32");
  ExpectFault(Read(changed(1, {"m.weight_scale", DType::kF32, {4, 1}})), "[4, 2]");
  ExpectFault(Read(changed(1, {"m.weight_scale", DType::kI8, {4, 2}})), "floating point");
  ExpectFault(Read(changed(2, {"m.weight_shape", DType::kU8, {2}})), "must be int64");
  ExpectFault(Read(good_, {4, 31}), "says [4, 31]");
  ExpectFault(Read(good_, {4, 32}, NAN), "element 0 is nan");
  ExpectFault(Read(good_, {4, 32}, -INFINITY), "element 0 is -inf");
  for (const char* extra : {"m.weight_zero_point", "m.weight_g_idx"}) {
    std::vector<TensorSpec> specs = good_;
    specs.push_back({extra, DType::kI32, {1}});
    const absl::Status status = Read(specs);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    ExpectFault(status, extra);
  }
}

TEST(CompressedTensorsTest, WhatTheFormCannotHoldIsNotWritten) {
  const TempDir dir;
  auto writer = SafetensorsWriter::Create(dir.path(), {{"x", DType::kU8, {1}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  Int4Weight weight = RandomWeight(2, 12, 4);
  EXPECT_THAT(std::string(WritePackedInt4("m", weight, &*writer).message()),
              HasSubstr("12 columns, must be a multiple of 8"));
  weight = RandomWeight(2, 16, 8);
  weight.zero_points.assign(4, 3);
  EXPECT_THAT(std::string(WritePackedInt4("m", weight, &*writer).message()),
              HasSubstr("zero points"));
}

}  // namespace
}  // namespace nibble::engine
