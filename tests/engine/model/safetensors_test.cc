// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/safetensors.h"

#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/temp_dir.h"

namespace nibble::engine {
namespace {

using nibble::testing::TempDir;
using ::testing::HasSubstr;

// Header JSON and data as a file, with the length the header has (or a lie).
std::string MakeFile(std::string_view header, std::string_view data,
                     std::optional<uint64_t> length = std::nullopt) {
  const uint64_t size = length.value_or(header.size());
  std::string file(reinterpret_cast<const char*>(&size), sizeof(size));
  return file.append(header).append(data);
}

absl::StatusOr<std::vector<TensorView>> Parse(const std::string& file) {
  return ParseSafetensors({reinterpret_cast<const uint8_t*>(file.data()), file.size()}, "x.st");
}

void ExpectRefused(const std::string& file, std::string_view part) {
  const auto tensors = Parse(file);
  ASSERT_FALSE(tensors.ok()) << file.substr(8, 200);
  EXPECT_THAT(std::string(tensors.status().message()), HasSubstr(std::string(part)));
  EXPECT_THAT(std::string(tensors.status().message()), HasSubstr("x.st"));
}

TEST(SafetensorsHeaderTest, ReadsTensorsSortedByName) {
  const std::string file = MakeFile(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
      std::string("\0\0\x80\x3f\x80\x3f\0\xc0", 8));
  const auto tensors = Parse(file);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2U);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].num_elements(), 1);
  EXPECT_EQ((*tensors)[1].dtype, DType::kBf16);
  // The data of this file begins at an odd address: reading must not need alignment.
  float values[2] = {};
  ASSERT_TRUE(ReadFloats((*tensors)[0], 0, 1, values).ok());
  EXPECT_EQ(values[0], 1.0F);
  ASSERT_TRUE(ReadFloats((*tensors)[1], 0, 2, values).ok());
  EXPECT_EQ(values[0], 1.0F);
  EXPECT_EQ(values[1], -2.0F);
}

TEST(SafetensorsHeaderTest, EmptyTensorsAndNoTensorsAreValid) {
  EXPECT_TRUE(Parse(MakeFile("{}", "")).ok());
  EXPECT_TRUE(
      Parse(MakeFile(R"({"a":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]}})", "")).ok());
}

TEST(SafetensorsHeaderTest, TruncatedFilesAreRefused) {
  ExpectRefused("", "0 bytes");
  ExpectRefused("1234567", "7 bytes");
  const std::string whole =
      MakeFile(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678");
  ASSERT_TRUE(Parse(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(Parse(whole.substr(0, size)).ok()) << size;
  }
  ExpectRefused(whole + "x", "9 bytes of data, the tensors end at 8");
}

TEST(SafetensorsHeaderTest, LyingLengthsAreRefused) {
  ExpectRefused(MakeFile("{}", "", 3), "header of 3 bytes in a file of 10");
  ExpectRefused(MakeFile("{}", "", 100'000'001), "the limit is 100000000");
  ExpectRefused(MakeFile("{}", "", UINT64_MAX), "18446744073709551615");
  ExpectRefused(MakeFile("{}", "", 1), "malformed header");
  ExpectRefused(MakeFile("{}", "", 0), "malformed header");
}

struct BadTensor {
  const char* fields;
  const char* message;
};

class BadTensorTest : public ::testing::TestWithParam<BadTensor> {};

TEST_P(BadTensorTest, IsRefusedByName) {
  const std::string header = std::string(R"({"bad":{)") + GetParam().fields + "}}";
  ExpectRefused(MakeFile(header, "12345678"), GetParam().message);
  ExpectRefused(MakeFile(header, "12345678"), "bad");
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadTensorTest,
    ::testing::Values(
        BadTensor{R"("dtype":"F32","shape":[2],"data_offsets":[4,12])",
                  "data_offsets [4, 12] in data of 8"},
        BadTensor{R"("dtype":"F32","shape":[2],"data_offsets":[8,0])", "data_offsets [8, 0]"},
        BadTensor{R"("dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775807])",
                  "data of 8 bytes"},
        BadTensor{R"("dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775808])",
                  "limit is 2^63"},
        BadTensor{R"("dtype":"F32","shape":[2],"data_offsets":[-1,8])", "unexpected -1"},
        BadTensor{R"("dtype":"F32","shape":[2],"data_offsets":[0,8.5])", "unexpected 8.5"},
        BadTensor{R"("dtype":"F32","shape":[2],"data_offsets":[0])", "1 numbers, not 2"},
        BadTensor{R"("dtype":"F32","shape":[3],"data_offsets":[0,8])",
                  "8 bytes, but float32 [3] is 12"},
        BadTensor{R"("dtype":"I64","shape":[4294967296,4294967296],"data_offsets":[0,8])",
                  "overflows"},
        BadTensor{R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])", "unexpected -2"},
        BadTensor{R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8])",
                  "more than 8"},
        BadTensor{R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])", "unexpected an array"},
        BadTensor{R"("dtype":"F32","shape":"2","data_offsets":[0,8])", "unexpected a string"},
        BadTensor{R"("dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8])",
                  "'F8_E4M3' is not supported"},
        BadTensor{R"("shape":[2],"data_offsets":[0,8])", "dtype is missing"},
        BadTensor{R"("dtype":"F32","data_offsets":[0,8])", "shape is missing"},
        BadTensor{R"("dtype":"F32","shape":[2])", "data_offsets is missing"},
        BadTensor{R"("dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8])",
                  "shape is given twice"},
        BadTensor{R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":{})",
                  "unexpected an object"}));

TEST(SafetensorsHeaderTest, OverlapsHolesAndRepeatsAreRefused) {
  const auto two = [](const char* first, const char* second) {
    return MakeFile(std::string(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)") + first +
                        R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + second + "}}",
                    "12345678");
  };
  ASSERT_TRUE(Parse(two("[0,4]", "[4,8]")).ok());
  ASSERT_TRUE(Parse(two("[4,8]", "[0,4]")).ok());
  ExpectRefused(two("[0,4]", "[2,6]"), "'b' begins at byte 2, inside 'a', which ends at 4");
  ExpectRefused(two("[0,4]", "[0,4]"), "inside");
  ExpectRefused(two("[1,5]", "[4,8]"), "bytes 0 to 1 before tensor 'a'");
  ExpectRefused(MakeFile(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                         R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                         "12345678"),
                "'a' is given twice");
}

TEST(SafetensorsHeaderTest, OtherJsonIsRefused) {
  for (const char* header : {"[]", "1", "null", "\"a\"", "{\"a\":1}", "{\"a\":[]}", "{\"a\":null}",
                             "{\"__metadata__\":1}", "{\"__metadata__\":{\"a\":1}}", "{\"a\":{}",
                             "{\"a\":{}} x", "{\"\x01\":{}}", "{\"\xff\":{}}"}) {
    EXPECT_FALSE(Parse(MakeFile(header, "")).ok()) << header;
  }
  ExpectRefused(MakeFile("{\"" + std::string(2000, 'n') + "\":{}}", ""),
                "2000 bytes, the limit is");
  ExpectRefused(MakeFile("{\"a\\nb\":{}}", ""), "control characters");
  // Nesting costs no stack, and a message does not repeat a huge token.
  ExpectRefused(MakeFile(std::string(1'000'000, '['), ""), "unexpected an array");
  const auto tensors = Parse(MakeFile("{" + std::string(1'000'000, '1') + "}", ""));
  EXPECT_LT(tensors.status().message().size(), 500U);
}

TEST(ReadFloatsTest, RangeAndTypeAreChecked) {
  const std::string file = MakeFile(R"({"f":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
                                    R"("i":{"dtype":"I32","shape":[1],"data_offsets":[4,8]}})",
                                    std::string("\0\x3c\0\xbc\0\0\0\0", 8));
  const auto tensors = Parse(file);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  float out[2] = {};
  ASSERT_TRUE(ReadFloats((*tensors)[0], 1, 1, out).ok());
  EXPECT_EQ(out[0], -1.0F);
  EXPECT_TRUE(ReadFloats((*tensors)[0], 2, 0, out).ok());
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 3},
                                     {-1, 1},
                                     {2, 1},
                                     {1, -1},
                                     {INT64_MAX, INT64_MAX},
                                     {1, INT64_MAX}}) {
    EXPECT_FALSE(ReadFloats((*tensors)[0], first, count, out).ok()) << first << " " << count;
  }
  EXPECT_THAT(std::string(ReadFloats((*tensors)[1], 0, 1, out).message()),
              HasSubstr("'i' is int32"));
}

constexpr const char* kOneTensor = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";

TEST(CheckpointTest, SingleFile) {
  const TempDir dir;
  dir.Write("model.safetensors", MakeFile(kOneTensor, "xy"));
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->total_bytes(), 2);
  ASSERT_TRUE(checkpoint->Get("a", {2}).ok());
  EXPECT_EQ((*checkpoint->Get("a"))->bytes[1], 'y');
  EXPECT_EQ(checkpoint->Find("b"), nullptr);
  const auto missing = checkpoint->Get("b");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("tensor 'b' is missing"));
  const auto wrong = checkpoint->Get("a", {1, 2});
  EXPECT_THAT(std::string(wrong.status().message()),
              HasSubstr("is [2], config.json makes it [1, 2]"));
}

TEST(CheckpointTest, NoTensorsInTheFolder) {
  const TempDir dir;
  EXPECT_EQ(Checkpoint::Open(dir.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Checkpoint::Open(dir.File("none")).status().code(), absl::StatusCode::kNotFound);
  dir.Write("pytorch_model.bin", "x");
  EXPECT_THAT(std::string(Checkpoint::Open(dir.path()).status().message()),
              HasSubstr("pytorch_model.bin"));
}

TEST(CheckpointTest, Shards) {
  const TempDir dir;
  dir.Write("s1.safetensors", MakeFile(kOneTensor, "xy"));
  dir.Write("s2.safetensors",
            MakeFile(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "z"));
  const auto open = [&](std::string_view index) {
    dir.Write("model.safetensors.index.json", index);
    return Checkpoint::Open(dir.path());
  };
  auto checkpoint =
      open(R"({"metadata":{},"weight_map":{"b":"s2.safetensors","a":"s1.safetensors"}})");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  // Views survive a move: they point into the mapped files and the vector's own memory.
  const TensorView* before = checkpoint->Find("b");
  const Checkpoint moved = *std::move(checkpoint);
  EXPECT_EQ(moved.Find("b"), before);
  EXPECT_EQ(before->bytes[0], 'z');
  EXPECT_EQ(moved.total_bytes(), 3);

  const std::pair<const char*, const char*> bad[] = {
      {R"({"weight_map":{"a":"s3.safetensors"}})", "s3.safetensors"},
      {R"({"weight_map":{"b":"s1.safetensors"}})", "tensor 'b' is here, but it is not"},
      {R"({"weight_map":{"a":"../s1.safetensors"}})", "not a file name"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "not a file name"},
      {R"({"weight_map":{"a":""}})", "not a file name"},
      {R"({"weight_map":{"a":"s1.safetensors\u0000x"}})", "not a file name"},
      {R"({"weight_map":{"a":1}})", "names no shard"},
      {R"({"weight_map":{}})", "weight_map"},
      {R"({"weight_map":[]})", "weight_map"},
      {R"([])", "weight_map"},
      {R"({"weight_map")", "malformed JSON"},
  };
  for (const auto& [index, message] : bad) {
    const auto refused = open(index);
    ASSERT_FALSE(refused.ok()) << index;
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(message)) << index;
  }
}

TEST(CheckpointTest, OpensTheBundledModelAndAShardedFixture) {
  const auto stories = Checkpoint::Open(NIBBLE_SOURCE_DIR "/models/stories-llama");
  ASSERT_TRUE(stories.ok()) << stories.status();
  EXPECT_TRUE(stories->Get("model.embed_tokens.weight", {4096, 256}).ok());
  const auto sharded =
      Checkpoint::Open(NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama_linear_bias");
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  EXPECT_EQ(sharded->tensors().size(), 35U);
}

}  // namespace
}  // namespace nibble::engine
