// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/quantize.h"

#include <cmath>
#include <filesystem>
#include <functional>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/float16.h"
#include "engine/model/compressed_tensors.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_writer.h"
#include "kernels/quant/rtn.h"
#include "tests/testing/temp_dir.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;
using engine::Checkpoint;
using engine::TensorView;
using nibble::testing::Slurp;
using nibble::testing::TempDir;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kStories = NIBBLE_SOURCE_DIR "/models/stories-llama";
const std::string kFixtures = NIBBLE_SOURCE_DIR "/tests/fixtures/models/";

std::set<std::string> Names(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) names.insert(entry.path().filename());
  return names;
}

// Every tensor of a w4a8 `output` by rtn against its source: linears as QuantizeRtn makes them, the
// rest equal.
void ExpectQuantized(const std::string& source, const std::string& output, int64_t group_size) {
  const auto from = Checkpoint::Open(source);
  const auto to = Checkpoint::Open(output);
  ASSERT_TRUE(from.ok() && to.ok()) << from.status() << to.status();
  ThreadPool pool(2);
  size_t expected_tensors = 0;
  for (const TensorView& tensor : from->tensors()) {
    const bool is_linear = tensor.name.find("_proj.weight") != std::string::npos;
    expected_tensors += is_linear ? 3 : 1;
    if (!is_linear) {
      const auto copy = to->Get(tensor.name, tensor.shape);
      ASSERT_TRUE(copy.ok()) << copy.status();
      EXPECT_EQ((*copy)->dtype, tensor.dtype);
      EXPECT_TRUE(std::equal(tensor.bytes.begin(), tensor.bytes.end(), (*copy)->bytes.begin()));
      continue;
    }
    const int64_t n = tensor.shape[0];
    const int64_t k = tensor.shape[1];
    std::vector<float> weights(static_cast<size_t>(n * k));
    ASSERT_TRUE(ReadFloats(tensor, 0, n * k, weights.data()).ok());
    const auto expected =
        kernels::QuantizeRtn(weights.data(), n, k, {.group_size = group_size}, &pool);
    ASSERT_TRUE(expected.ok()) << expected.status();
    const std::string module = tensor.name.substr(0, tensor.name.size() - 7);
    const auto read =
        ReadPackedInt4(*to, {.name = module, .n = n, .k = k, .group_size = group_size});
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->codes, expected->codes) << module;
    EXPECT_EQ(read->scales, expected->scales) << module;
    // The integers of the folded form come back from the float32 scales alone.
    EXPECT_TRUE(kernels::FindFoldedScales(*read).ok()) << module;
  }
  EXPECT_EQ(to->tensors().size(), expected_tensors);
}

TEST(QuantizeTest, BundledModelReadsBackIdentically) {
  const TempDir dir;
  const std::string output = dir.File("out");
  ThreadPool pool(2);
  std::vector<int64_t> done;
  const auto report =
      QuantizeCheckpoint(kStories, output, {}, &pool, [&](const QuantizeProgress& progress) {
        if (progress.phase != Phase::kLayers) return;
        done.push_back(progress.done);
        EXPECT_EQ(progress.total, 4 * kLayerUnits);
      });
  ASSERT_TRUE(report.ok()) << report.status();
  ExpectQuantized(kStories, output, 128);

  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.front(), 0);
  EXPECT_EQ(done.back(), 4 * kLayerUnits);
  EXPECT_EQ(report->source_bytes, Checkpoint::Open(kStories)->total_bytes());
  EXPECT_EQ(report->output_bytes, Checkpoint::Open(output)->total_bytes());
  EXPECT_NEAR(Summarize(report->layers).bits_per_weight, 4.25, 1e-9);
  EXPECT_EQ(report->calibration, "none");
  ASSERT_EQ(report->layers.size(), 4U);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(report->layers[i].layer_idx, static_cast<int64_t>(i));
    EXPECT_EQ(report->layers[i].modules.size(), 7U);
    // 4 bits leave an error near 10 % on weights like these; far from it, something is wrong.
    EXPECT_GT(report->layers[i].modules[0].weight_error, 0.03);
    EXPECT_LT(report->layers[i].modules[0].weight_error, 0.2);
  }

  const auto config = engine::LoadModelConfig(output);
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_TRUE(config->quantization.has_value());
  EXPECT_EQ(config->quantization->main_scheme()->group_size, 128);
  EXPECT_EQ(config->quantization->main_scheme()->activation_bits, 8);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                           "special_tokens_map.json"}) {
    EXPECT_EQ(Slurp(output + "/" + file), Slurp(kStories + "/" + file)) << file;
  }
  EXPECT_THAT(Names(dir.path()), ::testing::ElementsAre("out"));
  const auto written = nlohmann::json::parse(Slurp(output + "/" + kReportFile));
  EXPECT_EQ(written["layers"][3]["modules"].size(), 7U);
  EXPECT_EQ(written["method"], "rtn");
}

TEST(QuantizeTest, TheReportedErrorIsThatOfTheFile) {
  const TempDir dir;
  const std::string output = dir.File("out");
  ThreadPool pool(1);
  const auto report = QuantizeCheckpoint(kStories, output, {.group_size = 32}, &pool, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_NEAR(Summarize(report->layers).bits_per_weight, 5.0, 1e-9);
  const auto from = Checkpoint::Open(kStories);
  const auto to = Checkpoint::Open(output);
  ASSERT_TRUE(from.ok() && to.ok());
  const ModuleReport& module = report->layers[2].modules[0];
  const TensorView* tensor = *from->Get(module.name + ".weight", {module.n, module.k});
  const auto weight =
      ReadPackedInt4(*to, {.name = module.name, .n = module.n, .k = module.k, .group_size = 32});
  ASSERT_TRUE(weight.ok()) << weight.status();
  std::vector<float> values(static_cast<size_t>(module.n * module.k));
  ASSERT_TRUE(ReadFloats(*tensor, 0, module.n * module.k, values.data()).ok());
  double error = 0;
  double norm = 0;
  for (int64_t i = 0; i < module.n * module.k; ++i) {
    const double value = values[static_cast<size_t>(i)];
    error += std::pow(value - weight->Dequantize(i / module.k, i % module.k), 2);
    norm += value * value;
  }
  EXPECT_NEAR(module.weight_error, std::sqrt(error / norm), 1e-9);
}

TEST(QuantizeTest, EveryDtypeShardsAndBiases) {
  for (const char* name : {"llama", "llama_linear_bias", "qwen2", "qwen3"}) {
    const TempDir dir;
    ThreadPool pool(1);
    const auto report =
        QuantizeCheckpoint(kFixtures + name, dir.File("new/out"),
                           {.group_size = 8, .max_shard_bytes = 50'000}, &pool, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
    ExpectQuantized(kFixtures + name, dir.File("new/out"), 8);
    EXPECT_TRUE(fs::exists(dir.File("new/out/model.safetensors.index.json")));
  }
}

// The model with the tensors that `edit` keeps, as it changes them.
void CopyModel(const std::string& from, const std::string& to,
               const std::function<bool(engine::TensorSpec*)>& edit) {
  fs::copy_file(from + "/config.json", to + "/config.json");
  const auto source = Checkpoint::Open(from);
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<engine::TensorSpec> specs;
  std::vector<const TensorView*> tensors;
  for (const TensorView& tensor : source->tensors()) {
    engine::TensorSpec spec = {tensor.name, tensor.dtype, tensor.shape};
    if (!edit(&spec)) continue;
    specs.push_back(std::move(spec));
    tensors.push_back(&tensor);
  }
  auto writer = engine::SafetensorsWriter::Create(to, specs);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const TensorView* tensor : tensors) {
    ASSERT_TRUE(writer->Write(tensor->name, tensor->bytes).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
}

class RefusalTest : public ::testing::Test {
 protected:
  absl::Status Quantize(const std::string& source, const QuantizeOptions& options) {
    return QuantizeCheckpoint(source, output_, options, &pool_, nullptr).status();
  }
  void ExpectMessage(const absl::Status& status, std::initializer_list<const char*> parts) {
    EXPECT_FALSE(status.ok());
    for (const char* part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }

  ThreadPool pool_{1};
  TempDir dir_;
  std::string output_ = dir_.File("out");
};

TEST_F(RefusalTest, GroupSizesThatDoNotFit) {
  ExpectMessage(Quantize(kFixtures + "qwen3", {.group_size = 128}),
                {"_proj.weight", "not a multiple of the group size 128"});
  EXPECT_THAT(Names(dir_.path()), IsEmpty());
}

TEST_F(RefusalTest, OptionsOutOfRange) {
  ExpectMessage(Quantize(kStories, {.norm_tweak_rate = 0.0}), {"norm tweaking is 0"});
  ExpectMessage(Quantize(kStories, {.norm_tweak_rate = std::nan("")}), {"norm tweaking is nan"});
  ExpectMessage(Quantize(kStories, {.calibration = {.data = "x", .num_samples = -1}}),
                {"samples are -1"});
  ExpectMessage(Quantize(kStories, {.calibration = {.data = dir_.File("none")}}), {"/none: "});
  ExpectMessage(Quantize(kStories, {.eval_data = dir_.File("none")}), {"/none: "});
  // There is no tokenizer to calibrate with.
  ExpectMessage(Quantize(kFixtures + "llama", {.group_size = 8, .recipe = *ParseRecipe("gptq")}),
                {"tokenizer"});
  EXPECT_THAT(Names(dir_.path()), IsEmpty());
}

TEST_F(RefusalTest, AllViolationsAtOnce) {
  const QuantizeOptions options = {.group_size = 12,
                                   .norm_tweak_rate = 2.0,
                                   .calibration = {.num_samples = 0, .length = 1},
                                   .max_shard_bytes = 0};
  ExpectMessage(Quantize(kStories, options),
                {"group size is 12", "\nthe learning rate", "\nthe size of shards is 0",
                 "\ncalibration samples are 0", "\ncalibration length is 1"});
  for (const int64_t group_size : {-1, -8, 4, 65544}) {
    ExpectMessage(Quantize(kStories, {.group_size = group_size}), {"multiple of 8 in 8..65536"});
  }
  ExpectMessage(Quantize(kStories, {.scheme = Scheme::kW8A8}), {"group size is 128", "w8a8"});
  EXPECT_THAT(Names(dir_.path()), IsEmpty());
}

TEST_F(RefusalTest, OptionsThatNothingWouldUse) {
  ExpectMessage(Quantize(kStories, {.calibration = {.num_samples = 4}}), {"rtn needs no calib"});
  ExpectMessage(Quantize(kStories, {.calibration = {.length = 64}}), {"rtn needs no calib"});
  ExpectMessage(Quantize(kStories, {.calibration = {.seed = 3}}), {"seed is 3"});
  ExpectMessage(Quantize(kStories, {.recipe = *ParseRecipe("gptq"),
                                    .calibration = {.data = "text.txt", .seed = 3}}),
                {"seed is 3"});
  EXPECT_TRUE(
      Validate({.recipe = *ParseRecipe("gptq"), .calibration = {.length = 64, .seed = 3}}).ok());
  EXPECT_TRUE(Validate({.norm_tweak_rate = 1e-5, .calibration = {.seed = 3}}).ok());
  EXPECT_TRUE(Validate({.calibration = {.data = kSelfGenerated, .seed = 3}}).ok());
  EXPECT_THAT(Names(dir_.path()), IsEmpty());
}

// Found before any work, not in the last layer or after it.
TEST_F(RefusalTest, SourcesWithoutATensor) {
  const std::pair<const char*, const char*> cases[] = {
      {"llama", "model.embed_tokens.weight"},
      {"llama", "model.norm.weight"},
      {"llama", "model.layers.1.input_layernorm.weight"},
      {"llama", "model.layers.1.mlp.down_proj.weight"},
      {"qwen2", "model.layers.1.self_attn.k_proj.bias"},
      {"qwen3", "model.layers.1.self_attn.q_norm.weight"}};
  for (const auto& [fixture, missing] : cases) {
    for (const bool reshaped : {false, true}) {
      const TempDir dir;
      CopyModel(kFixtures + fixture, dir.path(), [&](engine::TensorSpec* spec) {
        if (spec->name != missing) return true;
        spec->shape.insert(spec->shape.begin(), 1);
        return reshaped;
      });
      ExpectMessage(Quantize(dir.path(), {.group_size = 8}), {missing});
      EXPECT_THAT(Names(dir_.path()), IsEmpty());
    }
  }
}

TEST_F(RefusalTest, SourcesThatAreNotFullPrecisionModels) {
  ASSERT_TRUE(Quantize(kStories, {}).ok());
  const auto again = QuantizeCheckpoint(output_, dir_.File("again"), {}, &pool_, nullptr);
  ExpectMessage(again.status(), {"quantized already"});
  // Without its quantization_config the tensors still tell.
  fs::copy_file(kStories + "/config.json", output_ + "/config.json",
                fs::copy_options::overwrite_existing);
  ExpectMessage(QuantizeCheckpoint(output_, dir_.File("again"), {}, &pool_, nullptr).status(),
                {"quantized already", "_proj"});
  EXPECT_EQ(Quantize(dir_.File("none"), {.overwrite = true}).code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(fs::exists(dir_.File("again")));
}

TEST_F(RefusalTest, FoldersInUse) {
  fs::create_directory(output_);
  ASSERT_TRUE(Quantize(kStories, {}).ok()) << "an empty folder is taken";
  const absl::Status second = Quantize(kStories, {});
  EXPECT_EQ(second.code(), absl::StatusCode::kAlreadyExists);
  ExpectMessage(second, {"is not empty"});
  EXPECT_TRUE(Quantize(kStories, {.group_size = 64, .overwrite = true}).ok());
  EXPECT_EQ(engine::LoadModelConfig(output_)->quantization->main_scheme()->group_size, 64);
  EXPECT_THAT(Names(dir_.path()), ::testing::ElementsAre("out"));

  fs::remove(output_ + "/config.json");
  ExpectMessage(Quantize(kStories, {.overwrite = true}), {"no config.json", "not overwritten"});
  output_ = dir_.File("file");
  dir_.Write("file", "x");
  ExpectMessage(Quantize(kStories, {.overwrite = true}), {"not a folder"});
  const std::string source = dir_.File("models/source");
  fs::create_directory(dir_.File("models"));
  fs::copy(kFixtures + "llama", source);
  for (const std::string& output :
       {source, source + "/../source/", dir_.File("models"), dir_.path()}) {
    output_ = output;
    ExpectMessage(Quantize(source, {.group_size = 8, .overwrite = true}),
                  {"would replace the source"});
  }
  output_ = "";
  ExpectMessage(Quantize(kStories, {}), {"empty"});
}

// A weight that cannot be quantized is found in the middle of the run: the output is not there,
// what is finished stays to go on from.
TEST_F(RefusalTest, AFailedRunLeavesNoOutput) {
  const std::string source = dir_.File("source");
  fs::create_directory(source);
  fs::copy_file(kFixtures + "llama/config.json", source + "/config.json");
  const auto good = Checkpoint::Open(kFixtures + "llama");
  ASSERT_TRUE(good.ok()) << good.status();
  std::vector<engine::TensorSpec> specs;
  for (const TensorView& tensor : good->tensors()) {
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  auto writer = engine::SafetensorsWriter::Create(source, specs);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const TensorView& tensor : good->tensors()) {
    std::vector<uint8_t> bytes(tensor.bytes.begin(), tensor.bytes.end());
    if (tensor.name == "model.layers.1.mlp.up_proj.weight") bytes[7] = bytes[6] = 0xff;  // NaN
    ASSERT_TRUE(writer->Write(tensor.name, bytes).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
  ExpectMessage(Quantize(source, {.group_size = 8}), {"model.layers.1.mlp.up_proj.weight", "nan"});
  EXPECT_THAT(Names(dir_.path()), ::testing::ElementsAre("out.partial", "source"));
  EXPECT_THAT(Names(output_ + ".partial/layers"), ::testing::ElementsAre("00000"));
  ExpectMessage(Quantize(source, {.group_size = kChannelGroup}), {"group size", "channel", "8"});
}

}  // namespace
}  // namespace nibble::quantize
