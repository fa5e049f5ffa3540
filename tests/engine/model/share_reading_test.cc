// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Parts of modules in every stored form: the values of the whole, and no page beyond the part is
// touched.

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/compressed_tensors.h"
#include "engine/model/qweight.h"
#include "engine/model/safetensors_writer.h"
#include "engine/model/shard.h"
#include "engine/model/tensor_convert.h"
#include "tests/testing/random.h"
#include "tests/testing/temp_dir.h"

namespace nibble::engine {
namespace {

// A module "m" [n, k] of random bits in one stored form.
struct Form {
  std::string name;
  WeightScheme scheme;
  int64_t n = 0;
  int64_t k = 0;
  // Small enough for every nibble to be compared.
  static constexpr int64_t kRows = 24;
  static constexpr int64_t kColumns = 96;

  bool is_int8() const { return scheme.weight_bits == 8; }
  bool has_qweight() const {
    return scheme.layout == WeightLayout::kGptq || scheme.layout == WeightLayout::kAwq;
  }
  int64_t num_groups() const { return (k + scheme.GroupSizeOf(k) - 1) / scheme.GroupSizeOf(k); }
  std::string CodesName() const {
    if (has_qweight()) return "m.qweight";
    return scheme.layout == WeightLayout::kPacked ? "m.weight_packed" : "m.weight";
  }
  // Where in the tensor of codes that of a channel pair is.
  int64_t ByteOf(int64_t row, int64_t column) const {
    switch (scheme.layout) {
      case WeightLayout::kPacked:
        return row * k / 2 + column / 2;
      case WeightLayout::kBytes:
        return row * k + column;
      case WeightLayout::kGptq:
        return (column / 8 * n + row) * 4;
      case WeightLayout::kAwq:
        return (column * (n / 8) + row / 8) * 4;
    }
    return 0;
  }
};

std::vector<Form> Forms(int64_t n, int64_t k) {
  std::vector<Form> forms;
  for (const int64_t group_size : {16, 0}) {
    const std::string suffix = group_size == 0 ? "_channel" : "_groups";
    const auto add = [&](const std::string& name, WeightScheme scheme) {
      scheme.group_size = group_size;
      forms.push_back({name + suffix, scheme, n, k});
    };
    add("packed", {.layout = WeightLayout::kPacked});
    add("packed_zeros", {.layout = WeightLayout::kPacked, .symmetric = false});
    add("bytes", {.layout = WeightLayout::kBytes});
    add("bytes_zeros", {.layout = WeightLayout::kBytes, .symmetric = false});
    add("gptq", {.layout = WeightLayout::kGptq});
    add("gptq_v2", {.layout = WeightLayout::kGptq, .zeros_less_one = false});
    add("awq", {.layout = WeightLayout::kAwq});
  }
  forms.push_back(
      {"int8", {.layout = WeightLayout::kBytes, .weight_bits = 8, .group_size = 0}, n, k});
  return forms;
}

std::vector<uint8_t> Bytes(const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

void Write(const Form& form, const std::string& dir) {
  nibble::testing::Random random(5);
  const int64_t n = form.n;
  const int64_t groups = form.num_groups();
  const WeightScheme& scheme = form.scheme;
  std::vector<TensorSpec> specs;
  std::map<std::string, std::vector<uint8_t>> bytes;
  const auto add = [&](const std::string& name, DType dtype, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<uint8_t>& content = bytes[name];
    content.resize(static_cast<size_t>(count) * SizeOf(dtype));
    for (uint8_t& byte : content) byte = static_cast<uint8_t>(random.Bits());
    specs.push_back({name, dtype, std::move(shape)});
  };
  const auto add_scales = [&](const std::string& name, std::vector<int64_t> shape) {
    add(name, DType::kF32, std::move(shape));
    bytes[name] = Bytes(random.Normals(static_cast<int64_t>(bytes[name].size() / 4), 0.01F));
  };
  // Four bits, -8..7, in a byte.
  const auto narrow = [&](const std::string& name) {
    for (uint8_t& byte : bytes[name]) byte = static_cast<uint8_t>((byte & 15) - 8);
  };
  switch (scheme.layout) {
    case WeightLayout::kPacked: {
      add("m.weight_packed", DType::kI32, {n, form.k / 8});
      add("m.weight_shape", DType::kI64, {2});
      const int64_t shape[2] = {n, form.k};
      std::memcpy(bytes["m.weight_shape"].data(), shape, sizeof(shape));
      add_scales("m.weight_scale", {n, groups});
      if (!scheme.symmetric) add("m.weight_zero_point", DType::kI32, {(n + 7) / 8, groups});
      break;
    }
    case WeightLayout::kBytes:
      add("m.weight", DType::kI8, {n, form.k});
      if (!form.is_int8()) narrow("m.weight");
      add_scales("m.weight_scale", {n, groups});
      if (!scheme.symmetric) {
        add("m.weight_zero_point", DType::kI8, {n, groups});
        narrow("m.weight_zero_point");
      }
      break;
    case WeightLayout::kGptq:
      add("m.qweight", DType::kI32, {form.k / 8, n});
      add("m.qzeros", DType::kI32, {groups, n / 8});
      add_scales("m.scales", {groups, n});
      break;
    case WeightLayout::kAwq:
      add("m.qweight", DType::kI32, {form.k, n / 8});
      add("m.qzeros", DType::kI32, {groups, n / 8});
      add_scales("m.scales", {groups, n});
      break;
  }
  auto writer = SafetensorsWriter::Create(dir, specs);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& [name, content] : bytes) ASSERT_TRUE(writer->Write(name, content).ok());
  ASSERT_TRUE(writer->Finish().ok());
}

// The share's values, dequantized [rows, columns].
std::vector<float> Read(const Form& form, const Checkpoint& checkpoint, const MatrixShare& share,
                        ThreadPool* pool) {
  std::vector<float> values;
  if (form.is_int8()) {
    const auto weight = ReadInt8(checkpoint, "m", share);
    EXPECT_TRUE(weight.ok() && weight->Validate().ok()) << weight.status();
    if (!weight.ok()) return {};
    for (size_t i = 0; i < weight->codes.size(); ++i) {
      values.push_back(weight->scales[i / static_cast<size_t>(weight->k)] *
                       static_cast<float>(weight->codes[i]));
    }
    return values;
  }
  const auto stored = form.has_qweight()
                          ? ReadQweight(checkpoint, "m", share, form.scheme, pool)
                          : ReadCompressedInt4(checkpoint, "m", share, form.scheme, pool);
  EXPECT_TRUE(stored.ok()) << stored.status();
  if (!stored.ok()) return {};
  const absl::Status valid = stored->weight.Validate();
  EXPECT_TRUE(valid.ok()) << valid;
  EXPECT_TRUE(stored->channel_order.empty());
  for (int64_t row = 0; row < stored->weight.n; ++row) {
    for (int64_t column = 0; column < stored->weight.k; ++column) {
      values.push_back(stored->weight.Dequantize(row, column));
    }
  }
  return values;
}

void ExpectPartOf(const std::vector<float>& whole, const MatrixShare& share,
                  const std::vector<float>& part, const std::string& what) {
  ASSERT_EQ(static_cast<int64_t>(part.size()), share.num_elements()) << what;
  for (int64_t i = 0; i < share.num_elements(); ++i) {
    const int64_t row = share.rows.begin + i / share.columns.size();
    const int64_t column = share.columns.begin + i % share.columns.size();
    ASSERT_EQ(part[static_cast<size_t>(i)], whole[static_cast<size_t>(row * share.k + column)])
        << what << ": row " << row << ", column " << column;
  }
}

class ShareReadingTest : public ::testing::TestWithParam<Form> {};

TEST_P(ShareReadingTest, PartsHaveTheValuesOfTheWhole) {
  const Form& form = GetParam();
  const nibble::testing::TempDir dir;
  Write(form, dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ThreadPool pool(2);
  const MatrixShare whole = MatrixShare::Whole(form.n, form.k);
  const std::vector<float> values = Read(form, *checkpoint, whole, &pool);
  ASSERT_EQ(static_cast<int64_t>(values.size()), form.n * form.k);

  std::vector<Range> rows = {{0, 12}, {12, 24}, {0, 5}, {5, 19}, {23, 24}, {8, 16}};
  std::vector<Range> columns = {{0, 48}, {48, 96}, {32, 64}, {80, 96}};
  if (form.scheme.group_size == 0) {  // nothing to be cut
    for (const Range& odd : {Range{0, 7}, Range{7, 14}, Range{9, 96}, Range{24, 36}}) {
      columns.push_back(odd);
    }
  }
  for (const Range& range : rows) {
    const MatrixShare share = {form.n, form.k, range, {0, form.k}};
    ExpectPartOf(values, share, Read(form, *checkpoint, share, &pool), form.name + " rows");
  }
  for (const Range& range : columns) {
    const MatrixShare share = {form.n, form.k, {0, form.n}, range};
    ExpectPartOf(values, share, Read(form, *checkpoint, share, &pool), form.name + " columns");
  }
}

INSTANTIATE_TEST_SUITE_P(, ShareReadingTest,
                         ::testing::ValuesIn(Forms(Form::kRows, Form::kColumns)),
                         [](const auto& test) { return test.param.name; });

// Makes pages of `tensor` unreadable that hold none of the bytes that `is_needed` names; how many.
int64_t ProtectOthers(const TensorView& tensor, const std::vector<bool>& is_needed) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(tensor.bytes.data());
  int64_t num_protected = 0;
  for (uintptr_t at = (start + page - 1) / page * page; at + page <= start + tensor.bytes.size();
       at += page) {
    const auto begin = is_needed.begin() + static_cast<int64_t>(at - start);
    if (std::find(begin, begin + static_cast<int64_t>(page), true) !=
        begin + static_cast<int64_t>(page)) {
      continue;
    }
    EXPECT_EQ(mprotect(reinterpret_cast<void*>(at), page, PROT_NONE), 0);
    ++num_protected;
  }
  return num_protected;
}

// Reads half of a module when all pages without a byte of this half are out of reach.
void ReadHalf(const Form& form, const MatrixShare& share) {
  const nibble::testing::TempDir dir;
  Write(form, dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto codes = checkpoint->Get(form.CodesName());
  ASSERT_TRUE(codes.ok()) << codes.status();
  std::vector<bool> is_needed((*codes)->bytes.size());
  const int word_bytes = form.has_qweight() ? 4 : 1;
  for (int64_t row = share.rows.begin; row < share.rows.end; ++row) {
    for (int64_t column = share.columns.begin; column < share.columns.end; ++column) {
      for (int i = 0; i < word_bytes; ++i) {
        is_needed[static_cast<size_t>(form.ByteOf(row, column) + i)] = true;
      }
    }
  }
  EXPECT_GE(ProtectOthers(**codes, is_needed), 8) << form.name;
  ThreadPool pool(2);
  EXPECT_EQ(static_cast<int64_t>(Read(form, *checkpoint, share, &pool).size()),
            share.num_elements());
}

TEST(ShareReadingPagesTest, OtherRanksCodesAreNotRead) {
  for (const bool by_rows : {true, false}) {
    // Lines of other ranks' codes are longer than a page.
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{8, 32768}, {131072, 16}}) {
      for (const Form& form : Forms(n, k)) {
        if (form.has_qweight() != (n > k) || form.scheme.group_size != 0) continue;
        const MatrixShare share =
            by_rows ? MatrixShare{n, k, {n / 2, n}, {0, k}} : MatrixShare{n, k, {0, n}, {0, k / 2}};
        ReadHalf(form, share);
      }
    }
  }
}

TEST(ShareReadingPagesTest, OtherRanksFloatsAreNotRead) {
  constexpr int64_t kN = 16;
  constexpr int64_t kK = 8192;
  ThreadPool pool(2);
  nibble::testing::Random random(3);
  const std::vector<float> values = random.Normals(kN * kK);
  for (const bool by_rows : {true, false}) {
    const nibble::testing::TempDir dir;
    auto writer = SafetensorsWriter::Create(dir.path(), {{"m", DType::kF32, {kN, kK}}});
    ASSERT_TRUE(writer.ok() && writer->Write("m", Bytes(values)).ok() && writer->Finish().ok());
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const TensorView* tensor = *checkpoint->Get("m");
    const MatrixShare share = by_rows ? MatrixShare{kN, kK, {5, 10}, {0, kK}}
                                      : MatrixShare{kN, kK, {0, kN}, {kK / 4, kK / 2}};
    std::vector<bool> is_needed(tensor->bytes.size());
    for (int64_t row = share.rows.begin; row < share.rows.end; ++row) {
      const auto first = is_needed.begin() + (row * kK + share.columns.begin) * 4;
      std::fill(first, first + share.columns.size() * 4, true);
    }
    EXPECT_GT(ProtectOthers(*tensor, is_needed), 10);
    for (const DType target : {DType::kF32, DType::kBf16, DType::kF16}) {
      std::vector<uint8_t> out(static_cast<size_t>(share.num_elements()) * SizeOf(target));
      const absl::Status status = ConvertShare(*tensor, share, target, out.data(), &pool);
      ASSERT_TRUE(status.ok()) << status;
      if (target != DType::kF32) continue;
      std::vector<float> part(static_cast<size_t>(share.num_elements()));
      std::memcpy(part.data(), out.data(), out.size());
      ExpectPartOf(values, share, part, by_rows ? "rows" : "columns");
    }
  }
}

// The first fault in the share is named by its place in the tensor; faults elsewhere are not seen.
TEST(ShareReadingFaultsTest, FaultsAreNamedByTheirPlace) {
  const nibble::testing::TempDir dir;
  ThreadPool pool(2);
  std::vector<float> values(8 * 6, 1.0F);
  values[3 * 6 + 4] = 70000.0F;
  auto writer = SafetensorsWriter::Create(dir.path(), {{"m", DType::kF32, {8, 6}}});
  ASSERT_TRUE(writer.ok() && writer->Write("m", Bytes(values)).ok() && writer->Finish().ok());
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const TensorView* tensor = *checkpoint->Get("m");
  uint8_t out[8 * 6 * 2];
  EXPECT_TRUE(ConvertShare(*tensor, {8, 6, {0, 8}, {0, 4}}, DType::kF16, out, &pool).ok());
  EXPECT_TRUE(ConvertShare(*tensor, {8, 6, {4, 8}, {0, 6}}, DType::kF16, out, &pool).ok());
  for (const MatrixShare& share :
       {MatrixShare{8, 6, {0, 8}, {3, 6}}, MatrixShare{8, 6, {2, 4}, {0, 6}}}) {
    EXPECT_THAT(std::string(ConvertShare(*tensor, share, DType::kF16, out, &pool).message()),
                ::testing::HasSubstr("element 22"));
  }
}

}  // namespace
}  // namespace nibble::engine
