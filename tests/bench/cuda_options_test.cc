// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "bench/cuda_allreduce_bench.h"
#include "bench/cuda_attention_bench.h"
#include "bench/cuda_codec_bench.h"

namespace nibble::bench {
namespace {

template <typename Options>
std::vector<std::string> Violations(const Options& options) {
  std::vector<std::string> violations;
  options.Validate(&violations);
  return violations;
}

TEST(CudaAttentionOptions, ShapesHaveNamesOrSizes) {
  const auto named = FindCudaAttentionShape("70b");
  ASSERT_TRUE(named.ok());
  EXPECT_EQ(named->num_heads, 64);
  const auto sized = FindCudaAttentionShape("24x3x96");
  ASSERT_TRUE(sized.ok());
  EXPECT_EQ(sized->num_heads, 24);
  EXPECT_EQ(sized->num_kv_heads, 3);
  EXPECT_EQ(sized->head_dim, 96);
  for (const char* bad : {"", "7b", "8x2", "8x3x64", "0x1x64", "8x0x64", "8x2x65", "8x2x512",
                          "8x2x64x1", "8x2x64 ", "2048x2x64", "x2x64", "8xx64"}) {
    EXPECT_EQ(FindCudaAttentionShape(bad).status().code(), absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

TEST(CudaOptions, DefaultsAreRight) {
  EXPECT_TRUE(Violations(CudaAttentionBenchOptions()).empty());
  EXPECT_TRUE(Violations(CudaCodecBenchOptions()).empty());
  EXPECT_TRUE(Violations(CudaAllReduceBenchOptions()).empty());
}

TEST(CudaOptions, NameWhatIsOutOfRange) {
  CudaAttentionBenchOptions attention;
  attention.shapes = {"8b", "9x2x64"};
  attention.dtypes = {"float16"};
  attention.sequences = {0};
  attention.contexts = {};
  attention.prefills = {int64_t{1} << 30};
  attention.block_size = 0;
  attention.max_cache_bytes = 0;
  attention.meter.seconds = 11.0;
  EXPECT_EQ(Violations(attention).size(), 8U);

  CudaCodecBenchOptions codec;
  codec.codecs.bits = {7};
  codec.meter.seconds = -1.0;
  EXPECT_EQ(Violations(codec).size(), 2U);

  CudaAllReduceBenchOptions allreduce;
  allreduce.ranks = 9;
  allreduce.transport = "shm";
  allreduce.sizes = {8};
  allreduce.row_size = 100;
  allreduce.codecs = {"int4", "bf16", "none", "int7"};
  allreduce.group_size = 48;
  allreduce.calls = 17;
  EXPECT_EQ(Violations(allreduce).size(), 9U);
  allreduce = {};
  allreduce.ranks = 1;
  EXPECT_EQ(Violations(allreduce).size(), 1U);
}

}  // namespace
}  // namespace nibble::bench
