// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Models with experts through the quantizer.

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/model/compressed_tensors.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "kernels/quant/rtn.h"
#include "quantize/quantize.h"
#include "tests/quantize/moe_model.h"
#include "tests/testing/temp_dir.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;
using engine::Checkpoint;
using engine::TensorView;
using nibble::testing::Slurp;
using nibble::testing::TempDir;
using testing::ExpertForm;
using ::testing::HasSubstr;
using testing::MoeModel;

struct Model {
  explicit Model(const std::string& type, ExpertForm form = ExpertForm::kPublished) {
    MoeModel(type, form, path);
    dir.Write("text.txt", testing::TinyText());
  }
  QuantizeOptions Options(std::string_view method) const {
    QuantizeOptions options;
    options.group_size = 8;
    options.recipe = *ParseRecipe(method);
    if (!options.recipe.IsRtn()) {
      options.calibration = {.data = dir.File("text.txt"), .num_samples = 6, .length = 40};
    }
    options.isa = *ChooseIsa();
    return options;
  }
  QuantizeReport Quantize(const QuantizeOptions& options, const std::string& output) const {
    ThreadPool pool(2);
    auto report = QuantizeCheckpoint(path, output, options, &pool, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? std::move(report).value() : QuantizeReport();
  }

  TempDir dir;
  std::string path = dir.File("model");
};

bool IsRounded(const std::string& name) {
  if (!name.ends_with(".weight")) return false;
  const std::string module = name.substr(0, name.rfind('.'));
  return module.ends_with("_proj") || module.ends_with(".w1") || module.ends_with(".w2") ||
         module.ends_with(".w3");
}

void ExpectSame(const TensorView& source, const Checkpoint& output) {
  const auto copy = output.Get(source.name, source.shape);
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ((*copy)->dtype, source.dtype) << source.name;
  EXPECT_TRUE(std::equal(source.bytes.begin(), source.bytes.end(), (*copy)->bytes.begin()))
      << source.name;
}

// Every linear layer rounded to nearest under its own name, the rest as it was, nothing else.
TEST(QuantizeMoeTest, RoundToNearestOfEveryExpert) {
  for (const char* type : {"mixtral", "qwen2_moe", "qwen3_moe"}) {
    SCOPED_TRACE(type);
    const Model model(type);
    model.Quantize(model.Options("rtn"), model.dir.File("out"));
    const auto from = Checkpoint::Open(model.path);
    const auto to = Checkpoint::Open(model.dir.File("out"));
    ASSERT_TRUE(from.ok() && to.ok()) << from.status() << to.status();
    ThreadPool pool(1);
    size_t num_tensors = 0;
    for (const TensorView& tensor : from->tensors()) {
      num_tensors += IsRounded(tensor.name) ? 3 : 1;
      if (!IsRounded(tensor.name)) {
        ExpectSame(tensor, *to);
        continue;
      }
      const int64_t n = tensor.shape[0];
      const int64_t k = tensor.shape[1];
      std::vector<float> weights(static_cast<size_t>(n * k));
      ASSERT_TRUE(ReadFloats(tensor, 0, n * k, weights.data()).ok());
      const auto expected = kernels::QuantizeRtn(weights.data(), n, k, {.group_size = 8}, &pool);
      const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
      const auto read = ReadPackedInt4(*to, {.name = module, .n = n, .k = k, .group_size = 8});
      ASSERT_TRUE(expected.ok() && read.ok()) << read.status();
      EXPECT_EQ(read->codes, expected->codes) << module;
      EXPECT_EQ(read->scales, expected->scales) << module;
    }
    EXPECT_EQ(to->tensors().size(), num_tensors);
  }
}

// Other engines leave alone what `ignore` names, and quantize all else.
TEST(QuantizeMoeTest, RoutersAreIgnored) {
  const std::map<std::string, std::vector<std::string>> unrounded = {
      {"mixtral", {"block_sparse_moe.gate"}},
      {"qwen2_moe", {"mlp.gate", "mlp.shared_expert_gate"}},
      {"qwen3_moe", {"mlp.gate"}}};
  for (const auto& [type, names] : unrounded) {
    SCOPED_TRACE(type);
    const Model model(type);
    const QuantizeReport report = model.Quantize(model.Options("rtn"), model.dir.File("out"));
    const auto config = engine::LoadModelConfig(model.dir.File("out"));
    ASSERT_TRUE(config.ok()) << config.status();
    ASSERT_TRUE(config->quantization.has_value());
    const auto is_ignored = [&](const std::string& module) {
      for (const engine::NamePattern& pattern : config->quantization->ignore) {
        if (*pattern.Matches(module, 1'000'000)) return true;
      }
      return false;
    };
    for (const std::string& name : names) {
      EXPECT_TRUE(is_ignored("model.layers.1." + name)) << name;
      EXPECT_TRUE(is_ignored("model.layers.17." + name)) << name;
    }
    EXPECT_TRUE(is_ignored("lm_head"));
    for (const LayerReport& layer : report.layers) {
      for (const ModuleReport& module : layer.modules) {
        EXPECT_FALSE(is_ignored(module.name)) << module.name;
      }
    }
  }
}

// As transformers 5 has experts in memory; what is written has the published names.
TEST(QuantizeMoeTest, FusedExpertsGiveTheSameModel) {
  for (const char* type : {"mixtral", "qwen2_moe"}) {
    for (const char* method : {"rtn", "gptq"}) {
      const Model model(type);
      const Model fused(type, ExpertForm::kFused);
      model.Quantize(model.Options(method), model.dir.File("out"));
      fused.Quantize(fused.Options(method), fused.dir.File("out"));
      for (const char* file : {"/model.safetensors", "/config.json"}) {
        EXPECT_TRUE(Slurp(model.dir.File("out") + file) == Slurp(fused.dir.File("out") + file))
            << type << " " << method << " " << file;
      }
    }
  }
}

TEST(QuantizeMoeTest, EveryMethodReadsBackAndLeavesTheRouter) {
  const std::pair<const char*, std::vector<const char*>> cases[] = {
      {"mixtral", {"gptq", "awq"}}, {"qwen2_moe", {"odyssey", "fptq"}}, {"qwen3_moe", {"gptq"}}};
  for (const auto& [type, methods] : cases) {
    const Model model(type);
    for (const char* method : methods) {
      SCOPED_TRACE(fmt::format("{} {}", type, method));
      QuantizeOptions options = model.Options(method);
      options.overwrite = true;
      if (std::string_view(method) == "odyssey") options.norm_tweak_rate = 1e-3;
      const QuantizeReport report = model.Quantize(options, model.dir.File("out"));
      const auto from = Checkpoint::Open(model.path);
      const auto to = Checkpoint::Open(model.dir.File("out"));
      ASSERT_TRUE(to.ok()) << to.status();
      for (const TensorView& tensor : from->tensors()) {
        const bool is_router = tensor.name.ends_with(".gate.weight") ||
                               tensor.name.ends_with("shared_expert_gate.weight");
        if (is_router) ExpectSame(tensor, *to);
      }
      for (const LayerReport& layer : report.layers) {
        EXPECT_EQ(layer.norm_tweak.has_value(), options.norm_tweak_rate.has_value());
        for (const ModuleReport& module : layer.modules) {
          EXPECT_TRUE(ReadPackedInt4(
                          *to, {.name = module.name, .n = module.n, .k = module.k, .group_size = 8})
                          .ok());
          ASSERT_TRUE(module.output_error.has_value()) << module.name;
        }
        for (const SiteReport& site : layer.sites) {
          if (site.name.find("expert") == std::string::npos) continue;
          if (site.name.ends_with("gate_up")) {
            EXPECT_EQ(site.equalization, "none");
          }
        }
      }
      const ErrorSummary all = Summarize(report.layers);
      EXPECT_LT(*all.output_error, *all.output_error_before);
      EXPECT_THAT(Table(report), HasSubstr("*gate "));
    }
  }
}

// Norms that feed routers must not have been scaled: a 16-bit router could not follow.
TEST(QuantizeMoeTest, EqualizationLeavesTheNormBeforeTheRouter) {
  const Model model("mixtral");
  bool others_changed = false;
  for (const char* method : {"awq", "fptq"}) {
    QuantizeOptions options = model.Options(method);
    options.overwrite = true;
    model.Quantize(options, model.dir.File("out"));
    const auto from = Checkpoint::Open(model.path);
    const auto to = Checkpoint::Open(model.dir.File("out"));
    for (const TensorView& tensor : from->tensors()) {
      if (tensor.name.ends_with("post_attention_layernorm.weight")) ExpectSame(tensor, *to);
      if (!tensor.name.ends_with("input_layernorm.weight")) continue;
      const auto copy = to->Get(tensor.name);
      others_changed |= !std::equal(tensor.bytes.begin(), tensor.bytes.end(),
                                    (*copy)->bytes.begin(), (*copy)->bytes.end());
    }
  }
  EXPECT_TRUE(others_changed);
}

// 240 calibration tokens are too few for any expert of four; the shared one needs no rule.
TEST(QuantizeMoeTest, ExpertsOfFewTokensAreReported) {
  const Model model("qwen2_moe");
  const QuantizeReport report = model.Quantize(model.Options("gptq"), model.dir.File("out"));
  ASSERT_EQ(report.layers.size(), 2U);
  EXPECT_TRUE(report.layers[0].experts.empty());
  ASSERT_EQ(report.layers[1].experts.size(), 5U);
  int64_t sum = 0;
  for (size_t e = 0; e < 4; ++e) {
    EXPECT_TRUE(report.layers[1].experts[e].all_tokens);
    sum += report.layers[1].experts[e].num_tokens;
  }
  EXPECT_EQ(sum, 2 * 6 * 40);
  EXPECT_FALSE(report.layers[1].experts[4].all_tokens);
  EXPECT_EQ(report.layers[1].experts[4].num_tokens, 6 * 40);
  EXPECT_THAT(Table(report), HasSubstr("on all tokens, for want of their own: 0 1 2 3\n"));
  const auto written = nlohmann::json::parse(Slurp(model.dir.File("out/quantize_report.json")));
  EXPECT_EQ(written["layers"][1]["modules"].size(), 4U + 3 * 5);
  EXPECT_EQ(written["layers"][1]["experts"].size(), 5U);
}

std::map<std::string, std::string> Contents(const std::string& dir) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename();
    if (name != kReportFile) contents[name] = Slurp(entry.path());
  }
  return contents;
}

TEST(QuantizeMoeTest, KilledItGoesOnToTheSameBytesWithAnyThreads) {
  const Model model("qwen2_moe", ExpertForm::kFused);
  QuantizeOptions options = model.Options("awq,clip,gptq");
  options.norm_tweak_rate = 1e-3;
  model.Quantize(options, model.dir.File("out"));
  const std::string output = model.dir.File("again");
  const pid_t child = fork();
  if (child == 0) {
    ThreadPool pool(1);
    (void)QuantizeCheckpoint(model.path, output, options, &pool,
                             [&](const QuantizeProgress& progress) {
                               if (progress.layer_idx == 1 && progress.step == "awq") _exit(9);
                             });
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 9);
  ThreadPool pool(1);
  const auto report = QuantizeCheckpoint(model.path, output, options, &pool, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->resumed_layers, 1);
  EXPECT_TRUE(Contents(output) == Contents(model.dir.File("out")));
}

TEST(QuantizeMoeTest, SourcesWithoutATensor) {
  const std::pair<ExpertForm, const char*> cases[] = {
      {ExpertForm::kPublished, "model.layers.1.block_sparse_moe.gate.weight"},
      {ExpertForm::kPublished, "model.layers.1.block_sparse_moe.experts.3.w2.weight"},
      {ExpertForm::kFused, "model.layers.1.mlp.experts.down_proj"}};
  for (const auto& [form, name] : cases) {
    const Model model("mixtral", form);
    const std::string broken = model.dir.File("broken");
    fs::create_directory(broken);
    fs::copy_file(model.path + "/config.json", broken + "/config.json");
    const auto source = Checkpoint::Open(model.path);
    std::vector<engine::TensorSpec> specs;
    for (const TensorView& tensor : source->tensors()) {
      specs.push_back({tensor.name, tensor.dtype, tensor.shape});
      if (tensor.name == name) specs.back().shape.push_back(1);
    }
    auto writer = engine::SafetensorsWriter::Create(broken, specs);
    ASSERT_TRUE(writer.ok());
    for (const TensorView& tensor : source->tensors()) {
      ASSERT_TRUE(writer->Write(tensor.name, tensor.bytes).ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
    ThreadPool pool(1);
    const auto report =
        QuantizeCheckpoint(broken, model.dir.File("out"), model.Options("rtn"), &pool, nullptr);
    EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(report.status().message()), HasSubstr(name));
  }
}

}  // namespace
}  // namespace nibble::quantize
