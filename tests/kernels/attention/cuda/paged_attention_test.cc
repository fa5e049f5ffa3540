// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/cuda/paged_attention.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/attention/cuda/expect_matches.h"
#include "tests/testing/compare.h"

namespace nibble::testing {
namespace {

class CudaAttention : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Must(gpu::ListDevices()).empty()) GTEST_SKIP() << "no CUDA device";
  }
  ThreadPool pool_{2};
};

// Plain kernels do what the CPU's do, in their order: equal bits, as far as one segment (512
// positions) goes.
TEST_F(CudaAttention, PlainHasTheCpusBits) {
  if (HostCpuFeatures().Best() < Isa::kAvx2) GTEST_SKIP() << "this machine has no AVX2";
  uint32_t seed = 1;
  for (const int64_t head_dim : {8, 24, 64, 80, 256}) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kI8}) {
      ++seed;
      const AttentionShape shape{.num_heads = 2 * (1 + seed % 5),
                                 .num_kv_heads = 2,
                                 .head_dim = head_dim,
                                 .block_size = 1 + seed * 7 % 20,
                                 .sliding_window = seed % 3 == 0 ? 40 : 0,
                                 .dtype = dtype};
      const SequenceData a = MakeSequence(shape, 75, ++seed);
      const SequenceData b = MakeSequence(shape, 130, ++seed);
      const std::vector<Chunk> chunks = {{&a, 68, 75}, {&b, 129, 130}, {&b, 0, 2}, {&a, 64, 65}};
      const auto expected = Attend(shape, chunks, Isa::kAvx2, &pool_);
      const auto actual =
          AttendOnDevice(shape, chunks, {.activation = DType::kF32, .num_layers = 1}, &pool_);
      for (size_t i = 0; i < chunks.size(); ++i) {
        EXPECT_TRUE(SameBits(actual[i], expected[i]))
            << "chunk " << i << " head_dim " << head_dim << " " << ToString(dtype) << " window "
            << shape.sliding_window << " block_size " << shape.block_size;
      }
    }
  }
}

constexpr DType kCaches[] = {DType::kF32, DType::kBf16, DType::kI8};

TEST_F(CudaAttention, MatchesReferenceForHeadDims) {
  uint32_t seed = 20;
  for (const DType activation : {DType::kF32, DType::kBf16}) {
    for (const int64_t head_dim : {16, 64, 80, 96, 128, 256}) {
      for (const DType dtype : kCaches) {
        ++seed;
        const AttentionShape shape{.num_heads = 4,
                                   .num_kv_heads = 2,
                                   .head_dim = head_dim,
                                   .block_size = 1 + seed * 5 % 32,
                                   .dtype = dtype};
        // Decode, a first token, a short chunk and a longer one.
        ExpectMatches(shape, {75, 70}, {{1, 69, 70}, {0, 0, 1}, {1, 60, 65}, {0, 40, 75}},
                      {.activation = activation, .num_layers = 1}, seed * 10, &pool_);
      }
    }
  }
}

TEST_F(CudaAttention, MatchesReferenceForGroupsBlocksAndWindows) {
  uint32_t seed = 100;
  for (const int64_t group : {1, 3, 4, 7, 8, 16, 17}) {
    for (const int64_t window : {0, 1, 5, 64, 100}) {
      ++seed;
      const AttentionShape shape{.num_heads = group,
                                 .num_kv_heads = 1,
                                 .head_dim = 64,
                                 .block_size = std::vector<int64_t>{1, 3, 8, 16, 31, 32}[seed % 6],
                                 .sliding_window = window,
                                 .dtype = kCaches[1 + seed % 2]};
      ExpectMatches(shape, {1, 150}, {{0, 0, 1}, {1, 63, 66}, {1, 149, 150}, {1, 100, 120}},
                    {.num_layers = 1}, seed * 10, &pool_);
    }
  }
}

// Long contexts are split among blocks when there are many of them for little work, and not when
// there are few; windows hide whole splits.
TEST_F(CudaAttention, MatchesReferenceForLongContexts) {
  uint32_t seed = 200;
  for (const DType activation : {DType::kF32, DType::kBf16}) {
    for (const int64_t window : {0, 300}) {
      for (const int num_sms : {1, 40}) {
        ++seed;
        const AttentionShape shape{
            .num_heads = 4,
            .num_kv_heads = 2,
            .head_dim = 64,
            .sliding_window = window,
            .dtype = kCaches[seed % 2 + (activation == DType::kF32 ? 0 : 1)]};
        ExpectMatches(shape, {1300, 513}, {{0, 1299, 1300}, {1, 510, 513}, {0, 1010, 1030}},
                      {.activation = activation, .num_sms = num_sms}, seed * 10, &pool_);
      }
    }
  }
}

// A captured graph is replayed for other steps of fewer sequences; padding gives zeros.
TEST_F(CudaAttention, GraphsAreReplayedForOtherSteps) {
  uint32_t seed = 300;
  for (const DType dtype : kCaches) {
    for (const int64_t group : {4, 17}) {
      ++seed;
      const AttentionShape shape{
          .num_heads = 2 * group, .num_kv_heads = 2, .head_dim = 64, .dtype = dtype};
      ExpectMatches(shape, {600, 5}, {{0, 599, 600}, {1, 4, 5}, {0, 128, 129}},
                    {.graph_seqs = 5, .num_sms = 40}, seed * 10, &pool_);
    }
  }
}

// Rows [begin, end) of `whole`, an output that starts at position 0.
std::vector<float> Rows(const AttentionShape& shape, const std::vector<float>& whole, int64_t begin,
                        int64_t end) {
  const int64_t columns = shape.num_heads * shape.head_dim;
  return {whole.begin() + begin * columns, whole.begin() + end * columns};
}

struct Case {
  DType activation;
  DType cache;
  int64_t window;
};
std::vector<Case> CasesWithWindow(int64_t window) {
  return {{DType::kF32, DType::kBf16, 0},
          {DType::kF32, DType::kI8, window},
          {DType::kBf16, DType::kBf16, window},
          {DType::kBf16, DType::kI8, 0}};
}

// Neither the chunk that a token came in nor what else is in the step, nor how work is split.
TEST_F(CudaAttention, ATokensBitsDependOnNothingAroundIt) {
  Random random(3);
  uint32_t seed = 400;
  for (const auto& [activation, dtype, window] : CasesWithWindow(90)) {
    ++seed;
    AttentionShape shape{.num_heads = 6,
                         .num_kv_heads = 2,
                         .head_dim = 64,
                         .sliding_window = window,
                         .dtype = dtype};
    constexpr int64_t kLength = 620;  // more than one segment
    const SequenceData sequence = Rounded(MakeSequence(shape, kLength, seed), activation);
    const SequenceData other = Rounded(MakeSequence(shape, 40, seed + 50), activation);
    constexpr int64_t kBegin = 470;
    const auto whole =
        AttendOnDevice(shape, {{&sequence, kBegin, kLength}},
                       {.activation = activation, .num_sms = 1, .num_layers = 1}, &pool_)[0];
    for (int64_t begin = kBegin; begin < kLength;) {
      const int64_t end = std::min(kLength, begin + random.Int(1, 110));
      shape.block_size = random.Int(1, 32);
      const auto results =
          AttendOnDevice(shape, {{&other, 0, 10}, {&sequence, begin, end}, {&other, 39, 40}},
                         {.activation = activation,
                          .num_sms = static_cast<int>(random.Int(1, 60)),
                          .num_layers = 1},
                         &pool_, random.Bits());
      ASSERT_TRUE(SameBits(results[1], Rows(shape, whole, begin - kBegin, end - kBegin)))
          << Describe(shape, {&sequence, begin, end}) << " " << ToString(activation);
      begin = end;
    }
    for (const int64_t position : {511, 512, 619}) {
      const auto alone = AttendOnDevice(shape, {{&sequence, position, position + 1}},
                                        {.activation = activation, .num_sms = 40}, &pool_)[0];
      ASSERT_TRUE(SameBits(alone, Rows(shape, whole, position - kBegin, position - kBegin + 1)))
          << Describe(shape, {&sequence, position, position + 1}) << " " << ToString(activation);
    }
  }
}

// Three segments of the plain kernels, five of the others: one block that goes through them adds in
// the order of the block that merges what others left.
TEST_F(CudaAttention, SplittingShowsInNoBit) {
  uint32_t seed = 500;
  for (const auto& [activation, dtype, window] : CasesWithWindow(600)) {
    const AttentionShape shape{.num_heads = 4,
                               .num_kv_heads = 1,
                               .head_dim = 64,
                               .sliding_window = window,
                               .dtype = dtype};
    constexpr int64_t kLength = 1110;
    const SequenceData sequence = Rounded(MakeSequence(shape, kLength, ++seed), activation);
    const std::vector<Chunk> chunks = {{&sequence, kLength - 4, kLength},
                                       {&sequence, kLength - 20, kLength}};
    std::vector<std::vector<float>> results[3];
    const int num_sms[] = {1, 2, 60};
    for (size_t i = 0; i < 3; ++i) {
      results[i] = AttendOnDevice(
          shape, chunks,
          {.activation = activation, .num_sms = num_sms[i], .num_layers = i == 2 ? 2 : 1}, &pool_);
    }
    for (size_t i = 1; i < 3; ++i) {
      EXPECT_TRUE(SameBits(results[i][0], results[0][0])) << ToString(dtype) << num_sms[i];
      EXPECT_TRUE(SameBits(results[i][1], results[0][1])) << ToString(dtype) << num_sms[i];
    }
    // Four rows are a chunk's own last ones, by the narrow form.
    EXPECT_TRUE(SameBits(results[0][0], Rows(shape, results[0][1], 16, 20)));
  }
}

TEST_F(CudaAttention, LargeScoresDoNotOverflow) {
  for (const DType activation : {DType::kF32, DType::kBf16}) {
    const AttentionShape shape{
        .num_heads = 1, .num_kv_heads = 1, .head_dim = 64, .dtype = DType::kBf16};
    SequenceData sequence = MakeSequence(shape, 90, 5);
    for (float& q : sequence.q) q *= 1e4F;
    sequence = Rounded(sequence, activation);
    // The largest score takes all; it is far ahead of the others.
    const auto expected = Attend(shape, {{&sequence, 0, 90}}, Isa::kRef, &pool_)[0];
    const auto actual =
        AttendOnDevice(shape, {{&sequence, 0, 90}}, {.activation = activation}, &pool_)[0];
    EXPECT_TRUE(AllWithin<float>({actual.data(), 90, 64, 64}, {expected.data(), 90, 64, 64},
                                 [](int64_t, int64_t) { return 0.05; }));
  }
}

TEST_F(CudaAttention, EmptyStepsAndSequencesWithoutNewTokens) {
  const AttentionShape shape{.num_heads = 2, .num_kv_heads = 1, .head_dim = 64};
  ExpectMatches(shape, {20}, {{0, 20, 20}, {0, 19, 20}, {0, 7, 7}}, {}, 1, &pool_);
  ExpectMatches(shape, {20}, {{0, 20, 20}}, {}, 2, &pool_);
}

TEST_F(CudaAttention, ShapesThatThereAreNot) {
  namespace cuda = kernels::cuda;
  using enum cuda::AttentionBackend;
  const gpu::DeviceCaps caps = Must(gpu::ListDevices())[0];
  const cuda::AttentionLimits limits{.max_tokens = 4, .max_seqs = 2, .max_blocks_per_seq = 3};
  const cuda::AttentionShape good{.num_heads = 4, .num_kv_heads = 2, .head_dim = 64};
  const auto complaint = [&](const cuda::AttentionShape& shape, cuda::AttentionBackend backend) {
    return std::string(
        cuda::DeviceAttention::Create(shape, limits, caps, backend).status().message());
  };
  cuda::AttentionShape shape = good;
  shape.head_dim = 260;
  EXPECT_EQ(complaint(shape, kAuto),
            "attention: head_dim is 260, the rule is a multiple of 8 up to 256");
  shape = good;
  shape.num_heads = 5;
  EXPECT_EQ(complaint(shape, kAuto),
            "attention: num_heads is 5, the rule is a multiple of num_kv_heads, 2");
  shape = good;
  shape.kv_dtype = DType::kF16;
  EXPECT_EQ(complaint(shape, kNibble),
            "attention: kv_dtype is float16, the choices are float32, bfloat16 and int8");
  shape = good;
  shape.activation = DType::kF32;
  EXPECT_EQ(cuda::DeviceAttention::Create(shape, limits, caps, kFlashInfer).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(Must(cuda::DeviceAttention::Create(shape, limits, caps, kAuto))->name(), "nibble");
}

TEST_F(CudaAttention, WhatDoesNotFitTheShapeIsRefused) {
  namespace cuda = kernels::cuda;
  const gpu::DeviceCaps caps = Must(gpu::ListDevices())[0];
  const auto attention =
      Must(cuda::DeviceAttention::Create({.num_heads = 4, .num_kv_heads = 2, .head_dim = 64},
                                         {.max_tokens = 4, .max_seqs = 2, .max_blocks_per_seq = 3},
                                         caps, cuda::AttentionBackend::kNibble));
  const gpu::Stream stream = Must(gpu::Stream::Create());
  const int32_t query_start[] = {0, 1};
  const int32_t context_lens[] = {20};
  const int32_t block_table[] = {1, 7};
  MustBeOk(attention->Plan({.num_seqs = 1,
                            .query_start = query_start,
                            .context_lens = context_lens,
                            .block_tables = block_table,
                            .max_blocks_per_seq = 2},
                           stream.get()));
  const auto memory = Must(gpu::DeviceBuffer<uint16_t>::Create(8 * 2 * 16 * 64));
  const cuda::KvCacheView cache{.keys = memory.data(),
                                .values = memory.data(),
                                .num_blocks = 8,
                                .num_kv_heads = 2,
                                .head_dim = 64};
  const cuda::AttentionArgs args{.q = {.data = memory.data(), .stride = 256},
                                 .out = {.data = memory.data() + 256, .stride = 256}};
  const auto complaint = [&](const cuda::KvCacheView& view, const cuda::AttentionArgs& changed) {
    return std::string(attention->Run(view, changed, stream.get()).message());
  };
  EXPECT_EQ(complaint(cache, args), "");
  MustBeOk(stream.Synchronize());
  cuda::KvCacheView view = cache;
  view.num_blocks = 7;
  EXPECT_EQ(complaint(view, args), "attention: the step has block 7, the limit is 6");
  view = cache;
  view.dtype = DType::kI8;
  EXPECT_NE(complaint(view, args), "");
  cuda::AttentionArgs changed = args;
  changed.q.stride = 255;
  EXPECT_EQ(
      complaint(cache, changed),
      "attention: q has a stride of 255 elements, the least is 256, in multiples of 16 bytes");
  changed = args;
  changed.out.dtype = DType::kF32;
  EXPECT_EQ(complaint(cache, changed), "attention: out is float32, the shape says bfloat16");
  changed = args;
  changed.sliding_window = -1;
  EXPECT_NE(complaint(cache, changed), "");
}

}  // namespace
}  // namespace nibble::testing
