// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The models that the other tests of this program load are where they are looked for, with or
// without a device: a pack that lacks them is found out before it is on a machine with one.

#include <filesystem>
#include <string>

#include "gtest/gtest.h"

#include "tests/engine/model/cuda/cuda_models.h"

namespace nibble::testing {
namespace {

TEST(CudaTestData, IsWhereTheTestsLook) {
  const auto check = [](const std::filesystem::path& model) {
    EXPECT_TRUE(std::filesystem::is_regular_file(model / "config.json")) << model;
    EXPECT_TRUE(std::filesystem::is_regular_file(model / "model.safetensors") ||
                std::filesystem::is_regular_file(model / "model.safetensors.index.json"))
        << model;
  };
  for (const char* const name :
       {"llama", "llama3", "llama_linear_bias", "mistral", "mixtral", "qwen2", "qwen3"}) {
    check(FixtureModel(name));
  }
  for (const char* const name :
       {"auto_round", "awq", "ct_group_index", "ct_mixed", "ct_w4a16_asym", "moe_gptq_act_order"}) {
    check(DataPath(std::string("tests/fixtures/quantized/") + name));
  }
  for (const char* const name : {"models/stories-llama", "models/stories-mixtral"}) {
    check(DataPath(name));
  }
}

}  // namespace
}  // namespace nibble::testing
