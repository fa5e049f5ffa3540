// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What loading makes of a checkpoint: fused, packed, quantized; and what it refuses.

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/model.h"
#include "kernels/quant/rtn.h"
#include "tests/engine/model/model_runner.h"
#include "tests/engine/model/tiny_checkpoint.h"

namespace nibble::engine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ModelRunner;
using testing::SameBits;
using testing::TinyCheckpoint;

class ModelLoadingTest : public ::testing::Test {
 protected:
  ModelLoadingTest() : pool_(2) {}

  absl::Status LoadStatus(const TinyCheckpoint& checkpoint, const LoadOptions& options = {}) {
    return Model::Load(checkpoint.Write(TestName()), options, &pool_).status();
  }

  // Logits of some ids.
  std::vector<float> Logits(const TinyCheckpoint& checkpoint, const LoadOptions& options,
                            const std::string& quantization_name) {
    auto model = testing::LoadOrFail(checkpoint.Write(TestName()), options, &pool_);
    if (model == nullptr) return {};
    EXPECT_EQ(model->quantization_name(), quantization_name);
    EXPECT_GT(model->weight_bytes(), 0);
    ModelRunner runner(model.get(), 4, &pool_);
    std::vector<int32_t> ids(20);
    std::iota(ids.begin(), ids.end(), 1);
    return runner.Prefill(ids, 20);
  }

  kernels::Int4Weight Quantize(const TinyCheckpoint& checkpoint, const std::string& module,
                               bool folded_scales) {
    const testing::TinyTensor& tensor = checkpoint.tensors.at(module + ".weight");
    auto weight = kernels::QuantizeRtn(tensor.values.data(), tensor.shape[0], tensor.shape[1],
                                       {.folded_scales = folded_scales}, &pool_);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }

  static std::string TestName() {
    return ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }

  ThreadPool pool_;
};

// A checkpoint whose modules (all but `plain`) are stored in 4 bits.
void PackAll(TinyCheckpoint* checkpoint, const std::vector<std::string>& plain,
             const std::function<kernels::Int4Weight(const std::string&)>& quantize) {
  std::vector<std::string> ignore = plain;
  ignore.push_back("lm_head");
  for (const std::string& module : TinyCheckpoint::LinearModules()) {
    if (std::find(plain.begin(), plain.end(), module) != plain.end()) continue;
    checkpoint->Pack(module, quantize(module));
  }
  checkpoint->config["quantization_config"] =
      QuantizationConfigJson({.group_size = 128, .activation_bits = 8, .ignore = ignore});
}

TEST_F(ModelLoadingTest, MissingTensorsAreNamed) {
  const TinyCheckpoint whole;
  for (const auto& [name, tensor] : whole.tensors) {
    TinyCheckpoint checkpoint;
    checkpoint.tensors.erase(name);
    const absl::Status status = LoadStatus(checkpoint);
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << name << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
}

TEST_F(ModelLoadingTest, WrongShapesAreNamedWithBothShapes) {
  const TinyCheckpoint whole;
  for (const auto& [name, tensor] : whole.tensors) {
    TinyCheckpoint checkpoint;
    testing::TinyTensor& damaged = checkpoint.tensors.at(name);
    const std::string want = ShapeToString(damaged.shape);
    damaged.shape[0] += 1;
    damaged.values.resize(damaged.values.size() / static_cast<size_t>(damaged.shape[0] - 1) *
                          static_cast<size_t>(damaged.shape[0]));
    const absl::Status status = LoadStatus(checkpoint);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name << ": " << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(name), HasSubstr(want), HasSubstr(ShapeToString(damaged.shape))));
  }
}

TEST_F(ModelLoadingTest, IntegerTensorIsRefused) {
  TinyCheckpoint checkpoint;
  testing::TinyTensor& tensor = checkpoint.tensors.at("model.layers.0.mlp.up_proj.weight");
  tensor.dtype = DType::kI32;
  EXPECT_THAT(std::string(LoadStatus(checkpoint).message()),
              AllOf(HasSubstr("model.layers.0.mlp.up_proj.weight"), HasSubstr("int32")));
}

TEST_F(ModelLoadingTest, MissingBiasIsNamed) {
  TinyCheckpoint checkpoint;
  checkpoint.config["attention_bias"] = true;
  EXPECT_THAT(std::string(LoadStatus(checkpoint).message()),
              HasSubstr("model.layers.0.self_attn.q_proj.bias"));
}

TEST_F(ModelLoadingTest, ValueBeyondFloat16IsRefused) {
  TinyCheckpoint checkpoint;
  checkpoint.tensors.at("model.layers.0.self_attn.v_proj.weight").values[77] = 70000.0F;
  EXPECT_THAT(std::string(LoadStatus(checkpoint, {.dtype = DType::kF16}).message()),
              AllOf(HasSubstr("element 77"), HasSubstr("v_proj.weight"), HasSubstr("70000")));
  EXPECT_TRUE(LoadStatus(checkpoint, {.dtype = DType::kBf16}).ok());
}

TEST_F(ModelLoadingTest, NanCannotBeQuantized) {
  TinyCheckpoint checkpoint;
  checkpoint.tensors.at("model.layers.0.mlp.down_proj.weight").values[5] = std::nanf("");
  EXPECT_THAT(std::string(LoadStatus(checkpoint, {.quantization = Quantization::kW4A8}).message()),
              HasSubstr("model.layers.0.mlp.down_proj"));
}

TEST_F(ModelLoadingTest, TiedHeadIsTheEmbedding) {
  TinyCheckpoint untied;
  untied.tensors.at("lm_head.weight") = untied.tensors.at("model.embed_tokens.weight");
  TinyCheckpoint tied;
  tied.config["tie_word_embeddings"] = true;
  tied.tensors.erase("lm_head.weight");
  EXPECT_TRUE(SameBits(Logits(tied, {}, "none, weights float32"),
                       Logits(untied, {}, "none, weights float32")));
}

TEST_F(ModelLoadingTest, ProgressAdvancesToTheEnd) {
  const TinyCheckpoint checkpoint;
  std::vector<std::pair<int64_t, int64_t>> calls;
  ASSERT_TRUE(
      LoadStatus(checkpoint, {.progress = [&](int64_t done,
                                              int64_t total) { calls.emplace_back(done, total); }})
          .ok());
  ASSERT_GT(calls.size(), 10U);
  for (size_t i = 1; i < calls.size(); ++i) {
    EXPECT_GE(calls[i].first, calls[i - 1].first);
    EXPECT_EQ(calls[i].second, calls[0].second);
  }
  EXPECT_EQ(calls.back().first, calls.back().second);
}

// Quantizing while loading, and loading what was quantized before, are the same model.
TEST_F(ModelLoadingTest, PackedCheckpointEqualsQuantizingAtLoad) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {}, [&](const std::string& module) { return Quantize(plain, module, true); });
  const std::vector<float> want =
      Logits(plain, {.quantization = Quantization::kW4A8}, "w4a8 (folded), head float32");
  EXPECT_TRUE(SameBits(Logits(packed, {}, "w4a8 (folded), head float32"), want));
  EXPECT_TRUE(SameBits(
      Logits(packed, {.quantization = Quantization::kW4A8}, "w4a8 (folded), head float32"), want));
}

// Activations that the checkpoint wants in 16 bits do not become int8 unless somebody says so.
TEST_F(ModelLoadingTest, FourBitWeightsWithFloatActivationsNeedAWord) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {}, [&](const std::string& module) { return Quantize(plain, module, true); });
  packed.config["quantization_config"] =
      QuantizationConfigJson({.group_size = 128, .activation_bits = 16, .ignore = {"lm_head"}});
  const absl::Status status = LoadStatus(packed);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("16-bit activations"), HasSubstr("--quantization w4a8"), HasSubstr("w4a16")));
  EXPECT_FALSE(
      Logits(packed, {.quantization = Quantization::kW4A8}, "w4a8 (folded), head float32").empty());
  EXPECT_FALSE(Logits(packed, {.quantization = Quantization::kW4A16},
                      "w4a16 (measuring aid: 4-bit weights held as float32), head float32")
                   .empty());
}

// Free float scales have no folded form; the integer form is near the exact weights.
TEST_F(ModelLoadingTest, FreeScalesTakeTheIntegerForm) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  // Two groups a row in down_proj alone: the others have one scale, which always folds.
  PackAll(&packed, {}, [&](const std::string& module) { return Quantize(plain, module, false); });
  const std::vector<float> integer = Logits(packed, {}, "w4a8 (folded and integer), head float32");
  const std::vector<float> exact =
      Logits(packed, {.quantization = Quantization::kW4A16},
             "w4a16 (measuring aid: 4-bit weights held as float32), head float32");
  ASSERT_EQ(integer.size(), exact.size());
  // int8 activations are the only other difference: measured 0.03 of the largest logit.
  double error = 0.0;
  double power = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(static_cast<double>(integer[i] - exact[i]), 2.0);
    power += std::pow(static_cast<double>(exact[i]), 2.0);
  }
  EXPECT_LT(std::sqrt(error / power), 0.03);
}

// W4A16 is float arithmetic on exactly the dequantized weights.
TEST_F(ModelLoadingTest, W4A16EqualsDequantizedFloat32) {
  const TinyCheckpoint plain;
  TinyCheckpoint dequantized;
  for (const std::string& module : TinyCheckpoint::LinearModules()) {
    const kernels::Int4Weight weight = Quantize(plain, module, true);
    std::vector<float>& values = dequantized.tensors.at(module + ".weight").values;
    for (int64_t row = 0; row < weight.n; ++row) {
      for (int64_t column = 0; column < weight.k; ++column) {
        values[static_cast<size_t>(row * weight.k + column)] = weight.Dequantize(row, column);
      }
    }
  }
  EXPECT_TRUE(SameBits(Logits(plain, {.quantization = Quantization::kW4A16},
                              "w4a16 (measuring aid: 4-bit weights held as float32), head float32"),
                       Logits(dequantized, {}, "none, weights float32")));
}

TEST_F(ModelLoadingTest, ModulesLeftPlainStayPlain) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {"model.layers.0.self_attn.o_proj"},
          [&](const std::string& module) { return Quantize(plain, module, true); });
  EXPECT_FALSE(
      Logits(packed, {}, "w4a8 (folded, 1 of 4 linear layers float32), head float32").empty());
}

TEST_F(ModelLoadingTest, HalfQuantizedFusedLayerIsRefused) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {"model.layers.0.self_attn.k_proj"},
          [&](const std::string& module) { return Quantize(plain, module, true); });
  const absl::Status status = LoadStatus(packed);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("q_proj"), HasSubstr("k_proj")));
}

TEST_F(ModelLoadingTest, PackedWithoutQuantizationConfigIsRefused) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {}, [&](const std::string& module) { return Quantize(plain, module, true); });
  packed.config.erase("quantization_config");
  EXPECT_THAT(std::string(LoadStatus(packed).message()), HasSubstr("quantization_config"));
}

}  // namespace
}  // namespace nibble::engine
