// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What loading makes of a checkpoint: fused, packed, quantized; and what it refuses.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/model.h"
#include "kernels/quant/int8_weight.h"
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

// Root of the mean squared error over that of the wanted values.
double RelativeError(const std::vector<float>& values, const std::vector<float>& want) {
  EXPECT_EQ(values.size(), want.size());
  double error = 0.0;
  double power = 0.0;
  for (size_t i = 0; i < std::min(values.size(), want.size()); ++i) {
    error += std::pow(static_cast<double>(values[i] - want[i]), 2.0);
    power += std::pow(static_cast<double>(want[i]), 2.0);
  }
  return std::sqrt(error / power);
}

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
      Logits(plain, {.quantization = Quantization::kW4A8}, "w4a8 (folded), head int8");
  EXPECT_TRUE(SameBits(Logits(packed, {}, "w4a8 (folded), head int8"), want));
  EXPECT_TRUE(SameBits(
      Logits(packed, {.quantization = Quantization::kW4A8}, "w4a8 (folded), head int8"), want));
}

// Activations that the checkpoint wants in 16 bits become int8, and that is said.
TEST_F(ModelLoadingTest, FourBitWeightsForFloatActivationsRunWithInt8AndAWarning) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {}, [&](const std::string& module) { return Quantize(plain, module, true); });
  const std::vector<float> want = Logits(packed, {}, "w4a8 (folded), head int8");
  packed.config["quantization_config"] =
      QuantizationConfigJson({.group_size = 128, .activation_bits = 16, .ignore = {"lm_head"}});
  EXPECT_TRUE(SameBits(Logits(packed, {}, "w4a8 (folded) of a w4a16 checkpoint, head int8"), want));
  const std::string dir = packed.Write(TestName());
  auto model = testing::LoadOrFail(dir, {}, &pool_);
  ASSERT_NE(model, nullptr);
  ASSERT_EQ(model->warnings().size(), 1U);
  EXPECT_THAT(model->warnings()[0],
              AllOf(HasSubstr("16-bit activations"), HasSubstr("--quantization w4a8"),
                    HasSubstr("w4a16"), HasSubstr(dir)));
  for (const Quantization quantization : {Quantization::kW4A8, Quantization::kW4A16}) {
    model = testing::LoadOrFail(dir, {.quantization = quantization}, &pool_);
    ASSERT_NE(model, nullptr);
    EXPECT_TRUE(model->warnings().empty());
  }
}

// Free float scales have no folded form; the integer form is near the exact weights.
TEST_F(ModelLoadingTest, FreeScalesTakeTheIntegerForm) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  // Two groups a row in down_proj alone: the others have one scale, which always folds.
  PackAll(&packed, {}, [&](const std::string& module) { return Quantize(plain, module, false); });
  const std::vector<float> integer = Logits(packed, {}, "w4a8 (folded and integer), head int8");
  const std::vector<float> exact =
      Logits(packed, {.quantization = Quantization::kW4A16}, "w4a16, head float32");
  ASSERT_EQ(integer.size(), exact.size());
  // int8 activations are the only other difference.
  EXPECT_LT(RelativeError(integer, exact), 0.03);
}

// W4A16 is float arithmetic on exactly the dequantized weights, which take 4 bits in memory.
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
  EXPECT_TRUE(SameBits(Logits(plain, {.quantization = Quantization::kW4A16}, "w4a16, head float32"),
                       Logits(dequantized, {}, "none, weights float32")));
  const std::string dir = plain.Write(TestName());
  const auto bytes = [&](Quantization quantization) {
    auto model = testing::LoadOrFail(
        dir, {.quantization = quantization, .head_quantization = HeadQuantization::kNone}, &pool_);
    return model == nullptr ? 0 : model->weight_bytes();
  };
  const int64_t saved = bytes(Quantization::kNone) - bytes(Quantization::kW4A16);
  EXPECT_GT(saved, (32 - 5) / 8 * 128 * (128 + 2 * 64 + 128 + 3 * 256));
}

TEST_F(ModelLoadingTest, ModulesLeftPlainStayPlain) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {"model.layers.0.self_attn.o_proj"},
          [&](const std::string& module) { return Quantize(plain, module, true); });
  EXPECT_FALSE(Logits(packed, {}, "w4a8 (folded), 1 of 7 modules float32, head int8").empty());
}

// q, k and v are fused; k alone is left plain. With one group and folded scales in every module
// that is quantized, what is left plain is the only difference to quantizing it as well.
TEST_F(ModelLoadingTest, HalfQuantizedFusedLayerRunsInParts) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  const std::string plain_module = "model.layers.0.self_attn.k_proj";
  PackAll(&packed, {plain_module},
          [&](const std::string& module) { return Quantize(plain, module, true); });
  // The same weights, all quantized, but k_proj's values are those of its 4-bit codes.
  TinyCheckpoint all;
  PackAll(&all, {}, [&](const std::string& module) { return Quantize(plain, module, true); });
  std::vector<float>& values = packed.tensors.at(plain_module + ".weight").values;
  const kernels::Int4Weight& codes = all.packed.at(plain_module);
  for (int64_t row = 0; row < codes.n; ++row) {
    for (int64_t column = 0; column < codes.k; ++column) {
      values[static_cast<size_t>(row * codes.k + column)] = codes.Dequantize(row, column);
    }
  }
  const std::vector<float> mixed =
      Logits(packed, {}, "w4a8 (folded), 1 of 7 modules float32, head int8");
  // int8 inputs of k_proj are the only difference.
  EXPECT_LT(RelativeError(mixed, Logits(all, {}, "w4a8 (folded), head int8")), 0.03);
}

// W8A8 on disk and W8A8 made while loading are the same model.
TEST_F(ModelLoadingTest, Int8CheckpointEqualsQuantizingAtLoad) {
  const TinyCheckpoint plain;
  TinyCheckpoint stored;
  for (const std::string& module : TinyCheckpoint::LinearModules()) {
    const testing::TinyTensor& tensor = plain.tensors.at(module + ".weight");
    const auto weight =
        kernels::QuantizeInt8(tensor.values.data(), tensor.shape[0], tensor.shape[1], &pool_);
    ASSERT_TRUE(weight.ok()) << weight.status();
    testing::TinyTensor codes = {.shape = tensor.shape, .dtype = DType::kI8};
    codes.raw.resize(weight->codes.size());
    std::memcpy(codes.raw.data(), weight->codes.data(), codes.raw.size());
    stored.tensors[module + ".weight"] = std::move(codes);
    stored.tensors[module + ".weight_scale"] = {.shape = {weight->n, 1}, .values = weight->scales};
  }
  stored.config["quantization_config"] =
      QuantizationConfigJson({.weight_bits = 8, .ignore = {"lm_head"}});
  const std::vector<float> want =
      Logits(plain, {.quantization = Quantization::kW8A8}, "w8a8, head int8");
  EXPECT_TRUE(SameBits(Logits(stored, {}, "w8a8, head int8"), want));
  EXPECT_LT(RelativeError(want, Logits(plain, {}, "none, weights float32")), 0.03);
  for (const Quantization quantization : {Quantization::kW4A8, Quantization::kW4A16}) {
    EXPECT_THAT(std::string(LoadStatus(stored, {.quantization = quantization}).message()),
                AllOf(HasSubstr("q_proj"), HasSubstr("stored in 8 bits")));
  }
}

TEST_F(ModelLoadingTest, FourBitCheckpointIsNotRoundedAgain) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {}, [&](const std::string& module) { return Quantize(plain, module, true); });
  EXPECT_THAT(std::string(LoadStatus(packed, {.quantization = Quantization::kW8A8}).message()),
              AllOf(HasSubstr("--quantization w8a8"), HasSubstr("stored in 4 bits")));
}

TEST_F(ModelLoadingTest, HeadForms) {
  const TinyCheckpoint plain;
  const std::vector<float> exact = Logits(plain, {}, "none, weights float32");
  // auto leaves the head of a plain model alone; asked for, it is rounded.
  const std::vector<float> int8 = Logits(plain, {.head_quantization = HeadQuantization::kInt8},
                                         "none, weights float32, head int8");
  const std::vector<float> int4 = Logits(plain, {.head_quantization = HeadQuantization::kInt4},
                                         "none, weights float32, head int4");
  EXPECT_GT(RelativeError(int8, exact), 1e-4);
  EXPECT_LT(RelativeError(int8, exact), 0.02);
  EXPECT_GT(RelativeError(int4, exact), RelativeError(int8, exact));
  EXPECT_LT(RelativeError(int4, exact), 0.2);
  Logits(plain, {.quantization = Quantization::kW4A8, .head_quantization = HeadQuantization::kNone},
         "w4a8 (folded), head float32");
}

// A head of less than 1/8 of what a step reads stays as it is.
TEST_F(ModelLoadingTest, SmallHeadStaysPlain) {
  TinyCheckpoint checkpoint;
  for (const char* name : {"lm_head.weight", "model.embed_tokens.weight"}) {
    testing::TinyTensor& tensor = checkpoint.tensors.at(name);
    tensor.shape[0] = 16;
    tensor.values.resize(16 * TinyCheckpoint::kHidden);
  }
  checkpoint.config["vocab_size"] = 16;
  auto model = testing::LoadOrFail(checkpoint.Write(TestName()),
                                   {.quantization = Quantization::kW4A8}, &pool_);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->quantization_name(), "w4a8 (folded), head float32");
}

TEST_F(ModelLoadingTest, TiedHeadIsRoundedFromTheEmbedding) {
  TinyCheckpoint untied;
  untied.tensors.at("lm_head.weight") = untied.tensors.at("model.embed_tokens.weight");
  TinyCheckpoint tied;
  tied.config["tie_word_embeddings"] = true;
  tied.tensors.erase("lm_head.weight");
  const LoadOptions options = {.quantization = Quantization::kW8A8};
  EXPECT_TRUE(SameBits(Logits(tied, options, "w8a8, head int8 beside the float32 embedding"),
                       Logits(untied, options, "w8a8, head int8")));
}

TEST_F(ModelLoadingTest, StoredHead) {
  const TinyCheckpoint plain;
  TinyCheckpoint packed;
  PackAll(&packed, {}, [&](const std::string& module) { return Quantize(plain, module, true); });
  packed.Pack("lm_head", Quantize(plain, "lm_head", true));
  const absl::Status ignored = LoadStatus(packed);
  EXPECT_EQ(ignored.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ignored.message()),
              AllOf(HasSubstr("lm_head.weight_packed"), HasSubstr("leaves lm_head plain")));
  packed.config["quantization_config"] = QuantizationConfigJson({.group_size = 128});
  EXPECT_TRUE(SameBits(
      Logits(packed, {}, "w4a8 (folded), head int4, as stored"),
      Logits(plain,
             {.quantization = Quantization::kW4A8, .head_quantization = HeadQuantization::kInt4},
             "w4a8 (folded), head int4")));
  EXPECT_THAT(
      std::string(LoadStatus(packed, {.head_quantization = HeadQuantization::kInt8}).message()),
      AllOf(HasSubstr("--head-quantization"), HasSubstr("stored in 4 bits")));
  packed.config["tie_word_embeddings"] = true;
  EXPECT_THAT(std::string(LoadStatus(packed).message()), HasSubstr("ties it to the embedding"));
}

TEST_F(ModelLoadingTest, BiasThatTheModelDoesNotHave) {
  TinyCheckpoint checkpoint;
  const std::string name = "model.layers.0.mlp.up_proj.bias";
  checkpoint.tensors[name] = {.shape = {TinyCheckpoint::kIntermediate},
                              .values = std::vector<float>(TinyCheckpoint::kIntermediate)};
  EXPECT_TRUE(LoadStatus(checkpoint).ok());
  checkpoint.tensors[name].values[3] = 0.5F;
  EXPECT_THAT(std::string(LoadStatus(checkpoint).message()),
              AllOf(HasSubstr(name), HasSubstr("has no bias")));
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
