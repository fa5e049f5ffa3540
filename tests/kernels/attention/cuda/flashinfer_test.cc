// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// FlashInfer's kernels cannot run in the emulator: on a GPU they are compared with the reference
// and with nibble's own. Compiled; not yet run.
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/attention/cuda/expect_matches.h"

namespace nibble::testing {
namespace {

using kernels::cuda::AttentionBackend;

class FlashInferAttention : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto devices = Must(gpu::ListDevices());
    if (devices.empty()) GTEST_SKIP() << "no CUDA device";
    const auto attention = kernels::cuda::DeviceAttention::Create(
        {.num_heads = 4, .num_kv_heads = 1, .head_dim = 128},
        {.max_tokens = 1, .max_seqs = 1, .max_blocks_per_seq = 1}, devices[0],
        AttentionBackend::kFlashInfer);
    if (absl::IsUnimplemented(attention.status())) {
      GTEST_SKIP() << std::string(attention.status().message());
    }
    ASSERT_TRUE(attention.ok()) << attention.status();
    EXPECT_EQ((*attention)->name(), "flashinfer");
  }
  ThreadPool pool_{8};
  const DeviceOptions options_{.backend = AttentionBackend::kFlashInfer, .out_gap = 0};
};

TEST_F(FlashInferAttention, MatchesReference) {
  uint32_t seed = 1;
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const int64_t group : {1, 4, 7, 8}) {
      for (const int64_t block_size : {1, 16, 32}) {
        seed += 10;
        const AttentionShape shape{.num_heads = 2 * group,
                                   .num_kv_heads = 2,
                                   .head_dim = head_dim,
                                   .block_size = block_size};
        // Chunks, a first token, a sequence that has nothing new, decode.
        ExpectMatches(
            shape, {300, 1500},
            {{0, 0, 300}, {1, 1499, 1500}, {1, 1000, 1090}, {0, 0, 1}, {0, 9, 9}, {1, 700, 703}},
            options_, seed, &pool_);
      }
    }
  }
}

// What benchmarks compare with.
TEST_F(FlashInferAttention, TakesDecodeWhereItIsToldTo) {
  DeviceOptions options = options_;
  options.backend = AttentionBackend::kFlashInferDecode;
  uint32_t seed = 2000;
  for (const int64_t group : {4, 8}) {
    seed += 10;
    const AttentionShape shape{.num_heads = 2 * group, .num_kv_heads = 2, .head_dim = 128};
    ExpectMatches(shape, {300, 1500}, {{0, 299, 300}, {1, 1499, 1500}, {1, 0, 1}}, options, seed,
                  &pool_);
  }
}

TEST_F(FlashInferAttention, WindowsGraphsAndDecodeAreNibbles) {
  AttentionShape shape{.num_heads = 8, .num_kv_heads = 2, .head_dim = 128, .sliding_window = 100};
  ExpectMatches(shape, {700}, {{0, 600, 700}, {0, 0, 50}}, options_, 1000, &pool_);
  shape.sliding_window = 700;  // hides nothing
  ExpectMatches(shape, {700}, {{0, 600, 700}, {0, 0, 50}}, options_, 1010, &pool_);
  shape.sliding_window = 0;
  const SequenceData sequence = Rounded(MakeSequence(shape, 700, 1020), DType::kBf16);
  const std::vector<Chunk> decode = {{&sequence, 699, 700}, {&sequence, 63, 64}};
  for (const int64_t graph_seqs : {0, 4}) {
    DeviceOptions options = options_;
    options.graph_seqs = graph_seqs;
    const auto actual = AttendOnDevice(shape, decode, options, &pool_);
    options.backend = AttentionBackend::kNibble;
    const auto expected = AttendOnDevice(shape, decode, options, &pool_);
    for (size_t i = 0; i < decode.size(); ++i) EXPECT_TRUE(SameBits(actual[i], expected[i]));
  }
}

}  // namespace
}  // namespace nibble::testing
