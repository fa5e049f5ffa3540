// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/model_setup.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

TEST(ModelSetupTest, NamesComeFromTheDirectory) {
  EXPECT_EQ(ModelNameFromPath("models/stories-llama"), "stories-llama");
  EXPECT_EQ(ModelNameFromPath("models/stories-llama/"), "stories-llama");
  EXPECT_EQ(ModelNameFromPath("/a/b/../c"), "c");
  EXPECT_EQ(ModelNameFromPath("/"), "model");
}

TEST(ModelSetupTest, NumbersForHumans) {
  EXPECT_EQ(Counted(1, "thread"), "1 thread");
  EXPECT_EQ(Counted(2, "thread"), "2 threads");
  EXPECT_EQ(HumanCount(999), "999 ");
  EXPECT_EQ(HumanCount(4'196'608), "4.20 M");
  EXPECT_EQ(HumanCount(70'000'000'000), "70.0 B");
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(8'397'312), "8.40 MB");
}

TEST(ModelSetupTest, CudaIsRefusedByName) {
  const auto choice = ChooseDevice({.model = "x", .device = "cuda"});
  EXPECT_EQ(choice.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(choice.status().message()),
              ::testing::AllOf(::testing::HasSubstr("--device cuda: "),
                               ::testing::HasSubstr("use --device cpu")));
  const auto chosen = ChooseDevice({.model = "x", .device = "auto"}, 1000);
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_EQ(chosen->device, "cpu");
  EXPECT_THAT(chosen->reason, ::testing::HasSubstr("CUDA"));
  EXPECT_EQ(ChooseDevice({.model = "x", .device = "cpu", .threads = 3})->threads, 3);
}

TEST(ModelSetupTest, WhatIsForCpusAloneIsNamed) {
  EXPECT_EQ(WhatCudaLacks({.model = "x"}), "");
  EXPECT_EQ(WhatCudaLacks({.model = "x", .quantization = "w4a8"}), "");
  EXPECT_EQ(WhatCudaLacks({.model = "x", .quantization = "w4a16"}),
            "--quantization w4a16 is for CPUs alone");
  EXPECT_EQ(WhatCudaLacks({.model = "x", .dtype = "float16"}), "--dtype float16 is for CPUs alone");
  EXPECT_EQ(WhatCudaLacks({.model = "x", .kv_cache_dtype = "float16"}),
            "--kv-cache-dtype float16 is for CPUs alone");
}

}  // namespace
}  // namespace nibble::cli
