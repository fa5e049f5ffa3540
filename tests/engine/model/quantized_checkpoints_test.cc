// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Checkpoints written by the public quantization tools (tests/fixtures/quantized): the values that
// the tools read back, bit by bit, and the logits of a transformers model with these values.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/model/compressed_tensors.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/model/qweight.h"
#include "engine/model/safetensors_writer.h"
#include "engine/model/shard.h"
#include "tests/engine/model/model_runner.h"
#include "tests/testing/temp_dir.h"

namespace nibble::engine {
namespace {

using testing::ModelRunner;

const std::string kFixtures = NIBBLE_SOURCE_DIR "/tests/fixtures/quantized";

// Folders that hold an expected.json: a new fixture is tested without naming it here.
std::vector<std::string> FixtureNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFixtures)) {
    if (std::filesystem::exists(entry.path() / "expected.json")) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

nlohmann::json ReadExpected(const std::string& name) {
  auto text = ReadFile(kFixtures + "/" + name + "/expected.json", size_t{1} << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  auto json = ParseJson(*text);
  EXPECT_TRUE(json.ok()) << json.status();
  return *std::move(json);
}

// CRC-32 of ISO 3309, as Python's zlib computes it.
uint32_t Crc32(const std::vector<float>& values) {
  std::vector<float> unsigned_zeros = values;  // -0 and 0 are the same weight
  for (float& value : unsigned_zeros) value += 0.0F;
  std::vector<uint8_t> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), unsigned_zeros.data(), bytes.size());
  uint32_t crc = ~0U;
  for (const uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0xedb88320U : 0U);
  }
  return ~crc;
}

// The module's values [n, k] as floats, in the order of the input channels.
std::vector<float> Dequantize(const Checkpoint& checkpoint, const std::string& module, int64_t n,
                              int64_t k, const WeightScheme& scheme, ThreadPool* pool) {
  std::vector<float> values(static_cast<size_t>(n * k));
  if (scheme.weight_bits == 8) {
    const auto weight = ReadInt8(checkpoint, {.name = module, .n = n, .k = k});
    EXPECT_TRUE(weight.ok()) << weight.status();
    if (!weight.ok()) return {};
    for (int64_t i = 0; i < n * k; ++i) {
      values[static_cast<size_t>(i)] = weight->scales[static_cast<size_t>(i / k)] *
                                       static_cast<float>(weight->codes[static_cast<size_t>(i)]);
    }
    return values;
  }
  const bool has_qweight =
      scheme.layout == WeightLayout::kGptq || scheme.layout == WeightLayout::kAwq;
  const MatrixShare whole = MatrixShare::Whole(n, k);
  const auto stored = has_qweight ? ReadQweight(checkpoint, module, whole, scheme, pool)
                                  : ReadCompressedInt4(checkpoint, module, whole, scheme, pool);
  EXPECT_TRUE(stored.ok()) << stored.status();
  if (!stored.ok()) return {};
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t column = 0; column < k; ++column) {
      const int64_t channel = stored->channel_order.empty()
                                  ? column
                                  : stored->channel_order[static_cast<size_t>(column)];
      values[static_cast<size_t>(row * k + channel)] = stored->weight.Dequantize(row, column);
    }
  }
  return values;
}

class QuantizedValuesTest : public ::testing::TestWithParam<std::string> {};

TEST_P(QuantizedValuesTest, AreThoseOfTheTool) {
  const std::string dir = kFixtures + "/" + GetParam();
  ThreadPool pool(2);
  const auto config = LoadModelConfig(dir);
  ASSERT_TRUE(config.ok()) << config.status();
  const auto checkpoint = Checkpoint::Open(dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const nlohmann::json expected = ReadExpected(GetParam());
  ASSERT_GE(expected.at("modules").size(), 5U);
  for (const auto& [module, want] : expected.at("modules").items()) {
    const auto scheme = config->quantization->Find(module);
    ASSERT_TRUE(scheme.ok() && *scheme != nullptr) << module;
    const auto share = ShareOf(*config, {}, module);
    ASSERT_TRUE(share.has_value()) << module;
    const std::vector<float> values =
        Dequantize(*checkpoint, module, share->n, share->k, **scheme, &pool);
    ASSERT_EQ(static_cast<int64_t>(values.size()), share->n * share->k) << module;
    const auto first = want.at("first").get<std::vector<float>>();
    for (size_t i = 0; i < first.size(); ++i) EXPECT_FLOAT_EQ(values[i], first[i]) << module;
    EXPECT_EQ(Crc32(values), want.at("crc32").get<uint32_t>()) << module;
  }
}

INSTANTIATE_TEST_SUITE_P(, QuantizedValuesTest, ::testing::ValuesIn(FixtureNames()),
                         [](const auto& test) { return test.param; });

// Logits at the expected positions against the expected ones.
struct LogitsError {
  double relative = 0.0;  // root of the mean square, over that of what is expected
  double worst = 0.0;     // largest, over the largest expected value
};

LogitsError Compare(Model* model, const nlohmann::json& expected, ThreadPool* pool) {
  const int64_t vocab_size = model->config().vocab_size;
  ModelRunner runner(model, 8, pool);
  const std::vector<float> logits =
      runner.Prefill(expected.at("input_ids").get<std::vector<int32_t>>(), 1000);
  double error = 0.0;
  double power = 0.0;
  double largest = 0.0;
  LogitsError result;
  for (const auto& row : expected.at("logits")) {
    const auto want = row.at("values").get<std::vector<float>>();
    const float* got = logits.data() + row.at("position").get<int64_t>() * vocab_size;
    for (size_t v = 0; v < want.size(); ++v) {
      const double difference = std::abs(static_cast<double>(got[v]) - want[v]);
      result.worst = difference <= result.worst ? result.worst : difference;  // NaN stays
      error += difference * difference;
      power += static_cast<double>(want[v]) * want[v];
      largest = std::max(largest, std::abs(static_cast<double>(want[v])));
    }
  }
  result.relative = std::sqrt(error / power);
  result.worst /= largest;
  return result;
}

using Param = std::tuple<std::string, Isa>;
class QuantizedLogitsTest : public ::testing::TestWithParam<Param> {};

// Float activations: both sides compute the same in float32, in other orders of summation.
TEST_P(QuantizedLogitsTest, FloatActivationsEqualTransformers) {
  const auto& [name, isa] = GetParam();
  if (name == "ct_w8a8" || name == "ct_mixed") GTEST_SKIP() << "8-bit modules always take int8";
  ThreadPool pool(2);
  auto model = testing::LoadOrFail(
      kFixtures + "/" + name,
      {.dtype = DType::kF32, .quantization = Quantization::kW4A16, .isa = isa}, &pool);
  ASSERT_NE(model, nullptr);
  EXPECT_LE(Compare(model.get(), ReadExpected(name), &pool).worst, 1e-4);
}

// As a server loads it: int8 activations, of which each linear layer's rounding costs 1 % or less,
// and 8-bit Integer Scale.
TEST_P(QuantizedLogitsTest, Int8ActivationsAreNear) {
  const auto& [name, isa] = GetParam();
  ThreadPool pool(2);
  auto model =
      testing::LoadOrFail(kFixtures + "/" + name, {.dtype = DType::kF32, .isa = isa}, &pool);
  ASSERT_NE(model, nullptr);
  // With experts their weights move too, which are a softmax of what the activations are.
  const double bound = name.starts_with("moe_") ? 0.04 : 0.03;
  EXPECT_LE(Compare(model.get(), ReadExpected(name), &pool).relative, bound) << name;
  const bool for_floats =
      name != "ct_w8a8" && name != "ct_w4a8_int" && name != "ct_mixed" && name != "moe_ct_w4a8";
  EXPECT_EQ(model->warnings().size(), for_floats ? 1U : 0U) << model->quantization_name();
}

INSTANTIATE_TEST_SUITE_P(, QuantizedLogitsTest,
                         ::testing::Combine(::testing::ValuesIn(FixtureNames()),
                                            ::testing::ValuesIn(testing::HostIsas())),
                         [](const ::testing::TestParamInfo<Param>& test) {
                           return fmt::format("{}_{}", std::get<0>(test.param),
                                              ToString(std::get<1>(test.param)));
                         });

struct Tensor {
  TensorSpec spec;
  std::vector<uint8_t> bytes;
};

void WriteCheckpoint(const std::string& to, const nlohmann::json& config,
                     const std::vector<Tensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const Tensor& tensor : tensors) specs.push_back(tensor.spec);
  auto writer = SafetensorsWriter::Create(to, specs);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const Tensor& tensor : tensors) {
    ASSERT_TRUE(writer->Write(tensor.spec.name, tensor.bytes).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
  std::ofstream(to + "/config.json") << config.dump();
}

// Root of the mean square, over that of what is expected. Infinite for another size.
double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double power = 0.0;
  double error = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    power += std::pow(static_cast<double>(want[i]), 2.0);
    error += std::pow(static_cast<double>(got[i] - want[i]), 2.0);
  }
  return std::sqrt(error / power);
}

// k_proj of gptq_act_order with another order than q_proj and v_proj: in the same fused layer.
TEST(QuantizedCheckpointsTest, FusedModulesOfDifferentOrders) {
  const std::string dir = kFixtures + "/gptq_act_order";
  const std::string k_proj = "model.layers.0.self_attn.k_proj";
  ThreadPool pool(2);
  const auto config = LoadModelConfig(dir);
  const auto checkpoint = Checkpoint::Open(dir);
  ASSERT_TRUE(config.ok() && checkpoint.ok());
  std::vector<Tensor> tensors;
  for (const TensorView& view : checkpoint->tensors()) {
    tensors.push_back(
        {{view.name, view.dtype, view.shape}, {view.bytes.begin(), view.bytes.end()}});
    if (view.name != k_proj + ".g_idx") continue;
    std::vector<uint8_t>& bytes = tensors.back().bytes;  // 0 and 1 change places: of 64 channels
    for (size_t i = 0; i < bytes.size(); i += 4) bytes[i] ^= 1;
  }
  auto json = ParseJson(*ReadFile(dir + "/config.json", size_t{1} << 20));
  ASSERT_TRUE(json.ok());
  const nibble::testing::TempDir changed;
  WriteCheckpoint(changed.path(), *json, tensors);

  // The same as plain float32, module by module.
  const auto reread = Checkpoint::Open(changed.path());
  ASSERT_TRUE(reread.ok()) << reread.status();
  std::erase_if(tensors, [](const Tensor& tensor) {
    return tensor.spec.name.find("_proj.") != std::string::npos;
  });
  const nlohmann::json expected = ReadExpected("gptq_act_order");
  for (const auto& [module, unused] : expected.at("modules").items()) {
    const MatrixShare share = *ShareOf(*config, {}, module);
    const int64_t n = share.n;
    const int64_t k = share.k;
    const std::vector<float> values =
        Dequantize(*reread, module, n, k, **config->quantization->Find(module), &pool);
    Tensor plain = {{module + ".weight", DType::kF32, {n, k}}, {}};
    plain.bytes.resize(values.size() * sizeof(float));
    std::memcpy(plain.bytes.data(), values.data(), plain.bytes.size());
    tensors.push_back(std::move(plain));
  }
  json->erase("quantization_config");
  const nibble::testing::TempDir plain;
  WriteCheckpoint(plain.path(), *json, tensors);

  const auto ids = expected.at("input_ids").get<std::vector<int32_t>>();
  const auto logits = [&](const std::string& from, Quantization quantization) {
    auto model =
        testing::LoadOrFail(from, {.dtype = DType::kF32, .quantization = quantization}, &pool);
    if (model == nullptr) return std::vector<float>();
    return ModelRunner(model.get(), 8, &pool).Prefill(ids, 1000);
  };
  const std::vector<float> want = logits(plain.path(), Quantization::kNone);
  ASSERT_FALSE(want.empty());
  EXPECT_LE(RelativeError(logits(changed.path(), Quantization::kW4A16), want), 1e-5);
  EXPECT_LE(RelativeError(logits(changed.path(), Quantization::kNone), want), 0.03);
}

// A step that reorders activations computes a row from that row alone too.
TEST(QuantizedCheckpointsTest, ActOrderDoesNotDependOnTheBatch) {
  ThreadPool pool(2);
  const nlohmann::json expected = ReadExpected("gptq_act_order");
  const auto ids = expected.at("input_ids").get<std::vector<int32_t>>();
  for (const Isa isa : testing::HostIsas()) {
    auto model = testing::LoadOrFail(kFixtures + "/gptq_act_order", {.isa = isa}, &pool);
    ASSERT_NE(model, nullptr);
    ModelRunner runner(model.get(), 8, &pool);
    const std::vector<float> whole = runner.Prefill(ids, 1000);
    EXPECT_TRUE(testing::SameBits(runner.Prefill(ids, 1), whole));
    EXPECT_TRUE(testing::SameBits(runner.Prefill(ids, 7), whole));
  }
}

TEST(QuantizedCheckpointsTest, NamesTellWhatRuns) {
  ThreadPool pool(1);
  struct Case {
    const char* fixture;
    const char* name;
    Quantization quantization = Quantization::kNone;
  };
  const Case cases[] = {
      {"gptq_act_order",
       "w4a8 (integer) of a w4a16 checkpoint, head int8 beside the float16 embedding"},
      {"gptq_v2",
       "w4a8 (integer) of a w4a16 checkpoint, 1 of 8 modules float16, head int4, as stored"},
      {"ct_mixed",
       "w4a8 (integer) and w8a8, 1 of 7 modules bfloat16, head int8 beside the bfloat16 embedding"},
      {"gptq_v2", "w4a16, 1 of 8 modules float16, head int4, as stored", Quantization::kW4A16},
      {"gptq_act_order", "w4a16, 7 of 7 modules reordered and float32, head float16",
       Quantization::kW4A16},
  };
  for (const auto& [fixture, name, quantization] : cases) {
    auto model =
        testing::LoadOrFail(kFixtures + "/" + fixture, {.quantization = quantization}, &pool);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->quantization_name(), name);
  }
}

}  // namespace
}  // namespace nibble::engine
