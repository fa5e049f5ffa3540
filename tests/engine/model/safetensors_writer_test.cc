// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/safetensors_writer.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/safetensors.h"
#include "tests/testing/temp_dir.h"

namespace nibble::engine {
namespace {

using nibble::testing::TempDir;
using ::testing::HasSubstr;

std::span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(SafetensorsWriterTest, WritesInAnyOrderAndAlignsByElementSize) {
  const TempDir dir;
  auto writer = SafetensorsWriter::Create(dir.path(), {{"odd \"name\" é", DType::kU8, {3}},
                                                       {"i", DType::kI64, {1}},
                                                       {"e", DType::kF32, {0}},
                                                       {"h", DType::kBf16, {2, 1}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Write("h", Bytes("hhHH")).ok());
  ASSERT_TRUE(writer->Write("odd \"name\" é", Bytes("abc")).ok());
  ASSERT_TRUE(writer->Write("e", {}).ok());
  const absl::Status early = writer->Finish();
  EXPECT_EQ(early.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(early.message()), HasSubstr("'i' was not written"));
  ASSERT_TRUE(writer->Write("i", Bytes("12345678")).ok());
  ASSERT_TRUE(writer->Finish().ok());

  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const TensorView* h = *checkpoint->Get("h", {2, 1});
  EXPECT_EQ(h->dtype, DType::kBf16);
  EXPECT_EQ(std::string(h->bytes.begin(), h->bytes.end()), "hhHH");
  const TensorView* odd = *checkpoint->Get("odd \"name\" é", {3});
  EXPECT_EQ(std::string(odd->bytes.begin(), odd->bytes.end()), "abc");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(checkpoint->Find("i")->bytes.data()) % 8, 0U);
}

TEST(SafetensorsWriterTest, ShardsWithAnIndex) {
  const TempDir dir;
  auto writer = SafetensorsWriter::Create(dir.path(),
                                          {{"a", DType::kU8, {6}},
                                           {"b", DType::kU8, {4}},
                                           {"c", DType::kU8, {25}},
                                           {"d", DType::kU8, {1}}},
                                          {.max_shard_bytes = 10});
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_EQ(writer->num_shards(), 3);
  ASSERT_TRUE(writer->Write("c", Bytes(std::string(25, 'c'))).ok());
  ASSERT_TRUE(writer->Write("a", Bytes("aaaaaa")).ok());
  ASSERT_TRUE(writer->Write("d", Bytes("d")).ok());
  ASSERT_TRUE(writer->Write("b", Bytes("bbbb")).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->tensors().size(), 4U);
  EXPECT_EQ(checkpoint->total_bytes(), 36);
  EXPECT_EQ(checkpoint->Find("c")->bytes[24], 'c');
  EXPECT_THAT(checkpoint->Find("c")->file, HasSubstr("model-00002-of-00003.safetensors"));
}

TEST(SafetensorsWriterTest, WrongUseIsRefused) {
  const TempDir dir;
  EXPECT_FALSE(SafetensorsWriter::Create(dir.path(), {}).ok());
  EXPECT_FALSE(
      SafetensorsWriter::Create(dir.path(), {{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(dir.path(), {{"a", DType::kU8, {-1}}}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(dir.path(), {{"a", DType::kI64, {INT64_MAX, 2}}}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(dir.path(), {{"\xff", DType::kU8, {1}}}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(dir.File("none"), {{"a", DType::kU8, {1}}}).ok());
  auto writer = SafetensorsWriter::Create(dir.path(), {{"a", DType::kU8, {1}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_FALSE(writer->Write("b", Bytes("x")).ok());
  EXPECT_FALSE(writer->Write("a", Bytes("xy")).ok());
  EXPECT_TRUE(writer->Write("a", Bytes("x")).ok());
  EXPECT_FALSE(writer->Write("a", Bytes("x")).ok());
  // An existing file is never overwritten.
  EXPECT_FALSE(SafetensorsWriter::Create(dir.path(), {{"a", DType::kU8, {1}}}).ok());
}

}  // namespace
}  // namespace nibble::engine
