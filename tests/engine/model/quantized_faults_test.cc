// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Damaged quantized checkpoints (of tests/fixtures/quantized): every fault is an error that names
// the tensor or the value.

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/model.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_writer.h"
#include "tests/testing/temp_dir.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct RawTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

struct Damaged {
  json config;
  std::map<std::string, RawTensor> tensors;

  template <typename T>
  void Set(const std::string& tensor, size_t index, T value) {
    ASSERT_LE((index + 1) * sizeof(T), tensors.at(tensor).bytes.size());
    std::memcpy(tensors.at(tensor).bytes.data() + index * sizeof(T), &value, sizeof(T));
  }
};

// Loading `fixture` after `damage`.
absl::Status LoadDamaged(const std::string& fixture, const std::function<void(Damaged*)>& damage) {
  const std::string dir = NIBBLE_SOURCE_DIR "/tests/fixtures/quantized/" + fixture;
  Damaged damaged;
  auto text = ReadFile(dir + "/config.json", size_t{1} << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  damaged.config = *ParseJson(*text);
  const auto checkpoint = Checkpoint::Open(dir);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const TensorView& tensor : checkpoint->tensors()) {
    damaged.tensors[tensor.name] = {
        tensor.dtype, tensor.shape, {tensor.bytes.begin(), tensor.bytes.end()}};
  }
  damage(&damaged);
  const nibble::testing::TempDir temp;
  temp.Write("config.json", damaged.config.dump());
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : damaged.tensors) {
    specs.push_back({.name = name, .dtype = tensor.dtype, .shape = tensor.shape});
  }
  auto writer = SafetensorsWriter::Create(temp.path(), std::move(specs));
  EXPECT_TRUE(writer.ok()) << writer.status();
  for (const auto& [name, tensor] : damaged.tensors) {
    EXPECT_TRUE(writer->Write(name, tensor.bytes).ok()) << name;
  }
  EXPECT_TRUE(writer->Finish().ok());
  ThreadPool pool(2);
  return Model::Load(temp.path(), {}, &pool).status();
}

constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

void ExpectFault(const std::string& fixture, const std::function<void(Damaged*)>& damage,
                 absl::StatusCode code, const std::string& part, const std::string& other = "") {
  const absl::Status status = LoadDamaged(fixture, damage);
  EXPECT_EQ(status.code(), code) << fixture << ": " << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(part), HasSubstr(other))) << fixture;
}

const std::string kUp = "model.layers.0.mlp.up_proj";
const std::string kDown = "model.layers.0.mlp.down_proj";

// Adds an element in dimension `dim`.
void Grow(RawTensor* tensor, size_t dim) {
  const size_t per_entry = tensor->bytes.size() / static_cast<size_t>(tensor->shape[dim]);
  tensor->bytes.resize(tensor->bytes.size() + per_entry);
  tensor->shape[dim] += 1;
}

TEST(QuantizedFaultsTest, UndamagedFixturesLoad) {
  for (const char* fixture : {"gptq_act_order", "awq", "ct_mixed", "ct_group_index", "ct_w8a8"}) {
    const absl::Status status = LoadDamaged(fixture, [](Damaged*) {});
    EXPECT_TRUE(status.ok()) << fixture << ": " << status;
  }
}

TEST(QuantizedFaultsTest, MissingTensorsAndWrongShapesAreNamed) {
  const std::vector<std::pair<const char*, std::vector<std::string>>> cases = {
      {"gptq_act_order", {".qweight", ".qzeros", ".scales", ".g_idx"}},
      {"awq", {".qweight", ".qzeros", ".scales"}},
      {"ct_w4a16_asym", {".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point"}},
      {"ct_group_index", {".weight_g_idx"}},
      {"ct_w4a8_int", {".weight", ".weight_scale"}},
      {"ct_w8a8", {".weight", ".weight_scale"}},
  };
  for (const auto& [fixture, suffixes] : cases) {
    for (const std::string& suffix : suffixes) {
      const std::string name = kUp + suffix;
      ExpectFault(
          fixture, [&](Damaged* damaged) { damaged->tensors.erase(name); }, kNotFound, name);
      for (size_t dim = 0; dim < 2; ++dim) {
        ExpectFault(
            fixture,
            [&](Damaged* damaged) {
              RawTensor& tensor = damaged->tensors.at(name);
              Grow(&tensor, std::min(dim, tensor.shape.size() - 1));
            },
            kInvalid, name);
      }
    }
  }
}

TEST(QuantizedFaultsTest, WrongTypesAreNamed) {
  const auto retype = [](const std::string& name, DType dtype) {
    return [name, dtype](Damaged* damaged) {
      RawTensor& tensor = damaged->tensors.at(name);
      ASSERT_EQ(SizeOf(tensor.dtype), SizeOf(dtype));
      tensor.dtype = dtype;
    };
  };
  ExpectFault("gptq_act_order", retype(kUp + ".qweight", DType::kF32), kInvalid, kUp + ".qweight",
              "must be int32");
  ExpectFault("gptq_act_order", retype(kUp + ".g_idx", DType::kF32), kInvalid, kUp + ".g_idx",
              "must be int32");
  ExpectFault("awq", retype(kUp + ".qzeros", DType::kF32), kInvalid, kUp + ".qzeros",
              "must be int32");
  ExpectFault("ct_w4a16_asym", retype(kUp + ".weight_zero_point", DType::kF32), kInvalid,
              kUp + ".weight_zero_point", "must be int32");
  ExpectFault("ct_w4a8_int", retype(kUp + ".weight", DType::kU8), kInvalid, kUp + ".weight",
              "must be int8");
  ExpectFault("ct_w8a8", retype(kUp + ".weight", DType::kU8), kInvalid, kUp + ".weight",
              "must be int8");
}

TEST(QuantizedFaultsTest, ValuesOutOfRangeAreNamed) {
  const std::string g_idx = kDown + ".g_idx";
  for (const int32_t group : {-2, 3, std::numeric_limits<int32_t>::max()}) {
    ExpectFault(
        "gptq_act_order", [&](Damaged* damaged) { damaged->Set<int32_t>(g_idx, 7, group); },
        kInvalid, g_idx, fmt::format("element 7 is {}, must be a group in 0..2", group));
  }
  // In range, but one group has a channel more than another.
  ExpectFault(
      "gptq_act_order",
      [&](Damaged* damaged) {
        for (size_t i = 0; i < 96; ++i)
          damaged->Set<int32_t>(g_idx, i, i < 33 ? 0 : i < 64 ? 1 : 2);
      },
      kUnimplemented, g_idx, "group 0 has 33 channels, must have 32");
  ExpectFault(
      "gptq_act_order",
      [&](Damaged* damaged) { damaged->Set<uint16_t>(kDown + ".scales", 65, 0x7e00); },  // NaN
      kInvalid, kDown + ".scales", "[1, 1] is nan");
  ExpectFault(
      "ct_w4a16_asym",
      [&](Damaged* damaged) {
        damaged->Set<uint16_t>(kDown + ".weight_scale", 3, 0xff80);
      },  // -inf
      kInvalid, kDown + ".weight_scale", "element 3 is -inf");
  // ct_mixed keeps the codes of down_proj in bytes.
  ExpectFault(
      "ct_mixed", [&](Damaged* damaged) { damaged->Set<int8_t>(kDown + ".weight", 97, 8); },
      kInvalid, kDown + ".weight", "[1, 1] is 8, 4-bit codes are -8..7");
  ExpectFault(
      "ct_mixed",
      [&](Damaged* damaged) { damaged->Set<int8_t>(kDown + ".weight_zero_point", 3, -9); },
      kInvalid, kDown + ".weight_zero_point", "[1, 1] is -9");
  ExpectFault(
      "ct_w4a16_asym",
      [&](Damaged* damaged) { damaged->Set<int64_t>(kUp + ".weight_shape", 1, 65); }, kInvalid,
      kUp + ".weight_shape", "[96, 65]");
}

// Some tools write a g_idx of zeros where there is none.
TEST(QuantizedFaultsTest, GroupIndexOfZerosWithoutActOrder) {
  const auto zeros = [](Damaged* damaged) {
    const int64_t k = damaged->config.at("intermediate_size");
    damaged->tensors[kDown + ".g_idx"] = {
        DType::kI32, {k}, std::vector<uint8_t>(static_cast<size_t>(k) * 4)};
  };
  const absl::Status status = LoadDamaged("gptq", zeros);
  EXPECT_TRUE(status.ok()) << status;
  ExpectFault("gptq_act_order", zeros, kUnimplemented, kDown + ".g_idx", "group 0 has");
}

// A rule that matches every name does not make the embedding quantized: its tensor is plain.
TEST(QuantizedFaultsTest, RuleForAllNames) {
  const auto all_names = [](Damaged* damaged) {
    json& quantization = damaged->config.at("quantization_config");
    quantization["dynamic"] = {{"+:.*", {{"group_size", quantization.at("group_size")}}}};
  };
  const absl::Status status = LoadDamaged("gptq", all_names);
  EXPECT_TRUE(status.ok()) << status;
  ExpectFault(
      "gptq",
      [&](Damaged* damaged) {
        all_names(damaged);
        damaged->tensors.erase("model.embed_tokens.weight");
      },
      kUnimplemented, "quantized embeddings", "model.embed_tokens");
}

TEST(QuantizedFaultsTest, ConfigAndTensorsMustAgree) {
  const auto no_config = [](Damaged* damaged) { damaged->config.erase("quantization_config"); };
  for (const char* fixture : {"gptq", "awq", "ct_w4a16_asym", "ct_w8a8"}) {
    ExpectFault(fixture, no_config, kInvalid, "model.layers.0.self_attn.q_proj",
                "no quantization_config");
  }
  const auto group_size = [](int64_t size) {
    return
        [size](Damaged* damaged) { damaged->config["quantization_config"]["group_size"] = size; };
  };
  ExpectFault("gptq", group_size(65536), kInvalid, "q_proj.qzeros", "[1, 8]");
  ExpectFault("gptq", group_size(16), kInvalid, "q_proj.qzeros", "[4, 8]");
  ExpectFault("gptq", group_size(-7), kInvalid, "group_size is -7");
  ExpectFault(
      "gptq",
      [](Damaged* damaged) {
        damaged->tensors[kUp + ".weight"] = {DType::kF16, {96, 64}, std::vector<uint8_t>(96 * 128)};
      },
      kInvalid, kUp + " is stored twice");
  ExpectFault(
      "ct_mixed",
      [](Damaged* damaged) { damaged->config["quantization_config"]["ignore"].push_back(kUp); },
      kInvalid, kUp + ".weight_packed", "leaves " + kUp + " plain");
  ExpectFault(
      "ct_w4a16_asym",
      [](Damaged* damaged) {
        damaged->config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] =
            true;
      },
      kInvalid, "q_proj.weight_zero_point", "symmetric");
  ExpectFault(
      "ct_w4a16_asym",
      [](Damaged* damaged) {
        damaged->config["quantization_config"]["config_groups"]["group_0"]["targets"].push_back(
            "Embedding");
      },
      kUnimplemented, "quantized embeddings");
}

TEST(QuantizedFaultsTest, StaticActivationScalesAreRefused) {
  for (const char* fixture : {"ct_w8a8", "ct_w4a8_int"}) {
    ExpectFault(
        fixture,
        [](Damaged* damaged) {
          damaged->tensors[kUp + ".input_scale"] = {DType::kF32, {1}, std::vector<uint8_t>(4)};
        },
        kUnimplemented, kUp + ".input_scale", "static activation scales");
  }
}

}  // namespace
}  // namespace nibble::engine
