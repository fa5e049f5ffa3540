// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a run makes: of every scheme and method, with any number of threads, killed at any point.
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/compressed_tensors.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "kernels/quant/int4_weight.h"
#include "quantize/quantize.h"
#include "tests/quantize/tiny_model.h"
#include "tests/testing/temp_dir.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;
using nibble::testing::Slurp;
using nibble::testing::TempDir;

// qwen3 has norms of q and k, and float16 tensors; qwen2 has biases.
struct Model {
  explicit Model(const std::string& name) {
    testing::MakeTinyModel(name, path);
    dir.Write("text.txt", testing::TinyText());
  }
  QuantizeOptions Options(std::string_view method) const {
    QuantizeOptions options;
    options.group_size = 8;
    options.recipe = *ParseRecipe(method);
    options.calibration = {.data = dir.File("text.txt"), .num_samples = 6, .length = 40};
    options.isa = *ChooseIsa();
    return options;
  }

  TempDir dir;
  std::string path = dir.File("model");
};

// What the bytes of a model directory are; the report has times.
std::map<std::string, std::string> Contents(const std::string& dir) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename();
    if (name != kReportFile) contents[name] = Slurp(entry.path());
  }
  return contents;
}

std::map<std::string, std::string> Quantized(const Model& model, const QuantizeOptions& options,
                                             int threads) {
  const TempDir dir;
  ThreadPool pool(threads);
  const auto report = QuantizeCheckpoint(model.path, dir.File("out"), options, &pool, nullptr);
  EXPECT_TRUE(report.ok()) << report.status();
  return Contents(dir.File("out"));
}

TEST(DeterminismTest, ThreadsDoNotChangeTheBytes) {
  const Model model("qwen2");
  QuantizeOptions options = model.Options("awq,clip,gptq");
  options.calibration.num_samples = 2;
  options.norm_tweak_rate = 1e-3;
  EXPECT_TRUE(Quantized(model, options, 1) == Quantized(model, options, 2));
}

struct Case {
  const char* method;
  Scheme scheme;
  int64_t group_size;
};

TEST(SchemesTest, WhatIsWrittenReadsBack) {
  const Case cases[] = {{"gptq", Scheme::kW4A8, 8},
                        {"awq", Scheme::kW4A16, 8},
                        {"odyssey", Scheme::kW4A8, kChannelGroup},
                        {"fptq", Scheme::kW4A8, 8},
                        {"rtn", Scheme::kW8A8, kChannelGroup},
                        {"gptq", Scheme::kW8A8, kChannelGroup}};
  const Model model("qwen2");
  for (const Case& test : cases) {
    QuantizeOptions options = model.Options(test.method);
    options.scheme = test.scheme;
    options.group_size = test.group_size;
    const TempDir dir;
    ThreadPool pool(2);
    const auto report = QuantizeCheckpoint(model.path, dir.File("out"), options, &pool, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(engine::LoadModelConfig(dir.File("out")).ok());
    const auto checkpoint = engine::Checkpoint::Open(dir.File("out"));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const LayerReport& layer : report->layers) {
      EXPECT_EQ(layer.sites.size(), 4U);
      for (const ModuleReport& module : layer.modules) {
        EXPECT_TRUE(module.output_error.has_value());
        if (test.scheme == Scheme::kW8A8) {
          EXPECT_LT(module.weight_error, 0.02);
          EXPECT_TRUE(
              engine::ReadInt8(*checkpoint, {.name = module.name, .n = module.n, .k = module.k})
                  .ok());
          continue;
        }
        const auto weight = engine::ReadPackedInt4(
            *checkpoint,
            {.name = module.name,
             .n = module.n,
             .k = module.k,
             .group_size = test.group_size == kChannelGroup ? module.k : test.group_size});
        ASSERT_TRUE(weight.ok()) << weight.status();
        EXPECT_TRUE(kernels::FindFoldedScales(*weight).ok()) << test.method << " " << module.name;
      }
    }
    const ErrorSummary all = Summarize(report->layers);
    if (test.scheme != Scheme::kW8A8) {
      EXPECT_LT(*all.output_error, *all.output_error_before) << test.method;
    }
  }
}

// Runs until the progress callback was called `calls` times, then dies without a word.
void RunAndDie(const Model& model, const std::string& output, const QuantizeOptions& options,
               int calls) {
  const pid_t child = fork();
  if (child == 0) {
    ThreadPool pool(2);
    const auto report =
        QuantizeCheckpoint(model.path, output, options, &pool, [&](const QuantizeProgress&) {
          if (--calls == 0) _exit(9);
        });
    _exit(report.ok() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  ASSERT_EQ(WEXITSTATUS(status), 9);
}

TEST(ResumeTest, KilledAnywhereItGoesOnToTheSameBytes) {
  const Model model("qwen3");
  QuantizeOptions options = model.Options("fptq,clip,gptq");
  options.norm_tweak_rate = 1e-3;
  int num_calls = 0;
  std::map<std::string, std::string> expected;
  {
    const TempDir dir;
    ThreadPool pool(2);
    const auto report = QuantizeCheckpoint(model.path, dir.File("out"), options, &pool,
                                           [&](const QuantizeProgress&) { ++num_calls; });
    ASSERT_TRUE(report.ok()) << report.status();
    expected = Contents(dir.File("out"));
  }
  // In each layer, in writing the output, and several times in one run.
  const TempDir dir;
  const std::string output = dir.File("out");
  for (const int calls : {3, num_calls / 4, num_calls / 2 + 2, num_calls - 2}) {
    RunAndDie(model, output, options, calls);
    EXPECT_FALSE(fs::exists(output));
    ThreadPool pool(1);
    QuantizeOptions other = options;
    other.recipe.clip = false;
    EXPECT_EQ(QuantizeCheckpoint(model.path, output, other, &pool, nullptr).status().code(),
              absl::StatusCode::kFailedPrecondition);
    bool replayed = false;  // as progress shows it
    const auto report = QuantizeCheckpoint(
        model.path, output, options, &pool,
        [&](const QuantizeProgress& state) { replayed |= state.step == "finished earlier"; });
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->resumed_layers > 0, calls > 3) << calls;
    EXPECT_EQ(replayed, calls > 3) << calls;
    EXPECT_TRUE(Contents(output) == expected) << calls;
    EXPECT_FALSE(fs::exists(output + ".partial"));
    fs::remove_all(output);
  }
  RunAndDie(model, output, options, num_calls / 3);
  RunAndDie(model, output, options, num_calls / 3);
  ThreadPool pool(2);
  ASSERT_TRUE(QuantizeCheckpoint(model.path, output, options, &pool, nullptr).ok());
  EXPECT_TRUE(Contents(output) == expected);
}

TEST(ResumeTest, SelfGeneratedTextIsKept) {
  const Model model("llama");
  QuantizeOptions options = model.Options("clip,rtn");
  options.calibration.data = kSelfGenerated;
  const std::map<std::string, std::string> expected = Quantized(model, options, 2);
  const TempDir dir;
  // It dies when the first layer begins: after the model has written.
  const pid_t child = fork();
  if (child == 0) {
    ThreadPool pool(1);
    (void)QuantizeCheckpoint(model.path, dir.File("out"), options, &pool,
                             [&](const QuantizeProgress& progress) {
                               if (progress.phase == Phase::kLayers) _exit(9);
                             });
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 9);
  ThreadPool pool(1);
  const auto report = QuantizeCheckpoint(
      model.path, dir.File("out"), options, &pool, [](const QuantizeProgress& progress) {
        EXPECT_NE(progress.phase, Phase::kGenerating) << "text was written twice";
      });
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(Contents(dir.File("out")) == expected);
}

}  // namespace
}  // namespace nibble::quantize
