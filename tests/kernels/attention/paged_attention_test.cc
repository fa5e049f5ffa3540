// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/paged_attention.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/attention/paged_attention_tiles.h"
#include "tests/kernels/attention/paged_problem.h"
#include "tests/testing/compare.h"

namespace nibble::testing {
namespace {

class PagedAttentionTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this machine has no " << ToString(GetParam());
    }
  }
  ThreadPool pool_{2};
};

// Errors of one score: head_dim roundings of a sum of size about 4 (scores of normal vectors are
// normal); they enter a weight as a relative error, and an output as that times the values' size.
// 64 more roundings for exp, the weights' sum and the values' sum, which grow like a random walk.
double Bound(const AttentionShape& shape) {
  return 6e-8 * (4.0 * static_cast<double>(shape.head_dim) + 64.0) * 4.0;
}

void ExpectMatchesReference(const AttentionShape& shape, const std::vector<Chunk>& chunks, Isa isa,
                            ThreadPool* pool) {
  const auto expected = Attend(shape, chunks, Isa::kRef, pool);
  const auto actual = Attend(shape, chunks, isa, pool);
  const int64_t columns = shape.num_heads * shape.head_dim;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const int64_t rows = chunks[i].end - chunks[i].begin;
    EXPECT_TRUE(AllWithin<float>({actual[i].data(), rows, columns, columns},
                                 {expected[i].data(), rows, columns, columns},
                                 [&](int64_t, int64_t) { return Bound(shape); }))
        << "heads " << shape.num_heads << "/" << shape.num_kv_heads << " head_dim "
        << shape.head_dim << " block_size " << shape.block_size << " window "
        << shape.sliding_window << " dtype " << ToString(shape.dtype) << " chunk ["
        << chunks[i].begin << ", " << chunks[i].end << ")";
  }
}

TEST_P(PagedAttentionTest, MatchesReferenceForShapes) {
  uint32_t seed = 1;
  for (const int64_t head_dim : {1, 2, 7, 16, 31, 32, 33, 64, 80, 96, 100, 128, 256}) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16, DType::kI8}) {
      const AttentionShape shape{.num_heads = 6,
                                 .num_kv_heads = 2,
                                 .head_dim = head_dim,
                                 .block_size = 1 + seed % 20,
                                 .dtype = dtype};
      const SequenceData a = MakeSequence(shape, 75, ++seed);
      const SequenceData b = MakeSequence(shape, 130, ++seed);
      ExpectMatchesReference(shape, {{&a, 0, 75}, {&b, 129, 130}, {&b, 60, 70}}, GetParam(),
                             &pool_);
    }
  }
}

// Whole strips of whole vectors are read where they lie when few rows want them, and packed for
// many.
TEST_P(PagedAttentionTest, MatchesReferenceInPlaceAndPacked) {
  uint32_t seed = 50;
  for (const int64_t head_dim : {16, 32, 48, 64, 112, 128}) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16, DType::kI8}) {
      ++seed;
      const AttentionShape shape{.num_heads = 2 * (1 + seed % 13),
                                 .num_kv_heads = 2,
                                 .head_dim = head_dim,
                                 .block_size = 16 * (1 + seed % 4),
                                 .sliding_window = seed % 3 == 0 ? 77 : 0,
                                 .dtype = dtype};
      const SequenceData a = MakeSequence(shape, 150, seed);
      ExpectMatchesReference(shape, {{&a, 149, 150}, {&a, 64, 65}, {&a, 62, 64}, {&a, 40, 70}},
                             GetParam(), &pool_);
    }
  }
}

TEST_P(PagedAttentionTest, MatchesReferenceForGroupsBlocksAndWindows) {
  uint32_t seed = 100;
  for (const int64_t group : {1, 2, 3, 4, 7, 8}) {
    for (const int64_t window : {0, 1, 5, 64, 100}) {
      const AttentionShape shape{.num_heads = 2 * group,
                                 .num_kv_heads = 2,
                                 .head_dim = 32,
                                 .block_size = std::vector<int64_t>{1, 3, 8, 16, 33, 64}[seed % 6],
                                 .sliding_window = window};
      const SequenceData a = MakeSequence(shape, 1, ++seed);
      const SequenceData b = MakeSequence(shape, 200, ++seed);
      ExpectMatchesReference(shape, {{&a, 0, 1}, {&b, 0, 90}, {&b, 150, 200}, {&b, 63, 66}},
                             GetParam(), &pool_);
    }
  }
}

TEST_P(PagedAttentionTest, MatchesReferenceForLongContexts) {
  for (const int64_t window : {0, 600}) {
    const AttentionShape shape{
        .num_heads = 2, .num_kv_heads = 1, .head_dim = 32, .sliding_window = window};
    const SequenceData a = MakeSequence(shape, 4100, 7);
    ExpectMatchesReference(shape, {{&a, 4099, 4100}, {&a, 1020, 1030}, {&a, 511, 513}}, GetParam(),
                           &pool_);
  }
}

// Rows [begin, end) of `whole`, an output that starts at position 0.
std::vector<float> Rows(const AttentionShape& shape, const std::vector<float>& whole, int64_t begin,
                        int64_t end) {
  const int64_t columns = shape.num_heads * shape.head_dim;
  return {whole.begin() + begin * columns, whole.begin() + end * columns};
}

TEST_P(PagedAttentionTest, ATokensBitsDependOnNothingAroundIt) {
  Random random(3);
  ThreadPool one(1);
  ThreadPool five(5);
  for (const int64_t window : {0, 70, 600}) {
    for (const int64_t group : {1, 3, 4, 13}) {
      AttentionShape shape{.num_heads = 2 * group,
                           .num_kv_heads = 2,
                           .head_dim = group == 3 ? 20 : 32,
                           .sliding_window = window,
                           .dtype = std::vector<DType>{DType::kF32, DType::kBf16, DType::kF16,
                                                       DType::kI8}[(group + window) % 4]};
      constexpr int64_t kLength = 1200;  // more than two segments of merging
      const SequenceData sequence = MakeSequence(shape, kLength, 11);
      const SequenceData other = MakeSequence(shape, 300, 12);
      const auto whole = Attend(shape, {{&sequence, 0, kLength}}, GetParam(), &one)[0];

      // Chunks of random sizes among other work, in other blocks, by other threads.
      for (int64_t begin = 0; begin < kLength;) {
        const int64_t end = std::min(kLength, begin + random.Int(1, 200));
        // Strips in one block, which are read in place, and others.
        shape.block_size = random.Int(0, 1) == 0 ? random.Int(1, 64) : 16 * random.Int(1, 4);
        const auto results =
            Attend(shape, {{&other, 0, 40}, {&sequence, begin, end}, {&other, 299, 300}},
                   GetParam(), &five, random.Bits());
        ASSERT_TRUE(SameBits(results[1], Rows(shape, whole, begin, end)))
            << "chunk [" << begin << ", " << end << ") window " << window << " group " << group;
        begin = end;
      }
      // Alone, as decoding does it: with one thread, and with its segments shared among five.
      for (const int64_t position : {0, 1, 63, 64, 65, 127, 511, 512, 513, 1023, 1024, 1199}) {
        for (ThreadPool* pool : {&one, &five}) {
          const auto alone =
              Attend(shape, {{&sequence, position, position + 1}}, GetParam(), pool)[0];
          ASSERT_TRUE(SameBits(alone, Rows(shape, whole, position, position + 1)))
              << "position " << position << " window " << window << " group " << group;
        }
      }
    }
  }
}

TEST_P(PagedAttentionTest, KeysThatATokenMustNotSeeCannotSpoilIt) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16, DType::kI8}) {
    // 20 components are packed; 32 are read in place by one token.
    for (const int64_t head_dim : {20, 32}) {
      const AttentionShape shape{
          .num_heads = 4, .num_kv_heads = 1, .head_dim = head_dim, .dtype = dtype};
      const int64_t columns = 4 * head_dim;
      SequenceData sequence = MakeSequence(shape, 100, 5);
      const std::vector<Chunk> chunks = {{&sequence, 0, 100}, {&sequence, 69, 70}};
      const auto clean = Attend(shape, chunks, GetParam(), &pool_);
      sequence.k[static_cast<size_t>(70 * head_dim)] = std::numeric_limits<float>::quiet_NaN();
      sequence.v[static_cast<size_t>(70 * head_dim + 1)] = std::numeric_limits<float>::infinity();
      const auto spoiled = Attend(shape, chunks, GetParam(), &pool_);
      EXPECT_TRUE(SameBits(Rows(shape, spoiled[0], 0, 70), Rows(shape, clean[0], 0, 70)));
      EXPECT_TRUE(SameBits(spoiled[1], clean[1]));
      EXPECT_TRUE(std::isnan(spoiled[0][static_cast<size_t>(70 * columns)])) << ToString(dtype);
    }
  }
}

// What int8 costs against the floats themselves. A component of a key is off by at most half a
// step, max |k| / 254, so a score by scale * sum_d |q_d| max |k| / 254 at most; its size is far
// below, as signs are random: a standard deviation of scale * |q| * max |k| / (254 sqrt(3)) =
// 3.5 / 440 for normal vectors (scale * |q| = 1, max |k| of 64 around 2.5, of 7000 keys below 4.5).
// A weight is off by that factor, a value by another max |v| / 254 at most; the output is an
// average of both over many keys, never more than 6 deviations of a single score times the
// largest value, plus half a step of the values.
TEST_P(PagedAttentionTest, Int8IsWithinItsStepOfFloats) {
  AttentionShape shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 64, .dtype = DType::kF32};
  const SequenceData sequence = MakeSequence(shape, 130, 21);
  const auto floats = Attend(shape, {{&sequence, 100, 130}}, Isa::kRef, &pool_)[0];
  shape.dtype = DType::kI8;
  const auto bytes = Attend(shape, {{&sequence, 100, 130}}, GetParam(), &pool_)[0];
  constexpr double kMax = 4.5;
  constexpr double kBound = 6.0 * kMax / 440.0 * kMax + kMax / 254.0;
  EXPECT_TRUE(AllWithin<float>({bytes.data(), 30, 256, 256}, {floats.data(), 30, 256, 256},
                               [](int64_t, int64_t) { return kBound; }));
  // And typically a tenth of that: the mean over the output tells a lost scale from rounding.
  double error = 0.0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    error += std::abs(static_cast<double>(bytes[i]) - static_cast<double>(floats[i]));
  }
  EXPECT_LT(error / static_cast<double>(bytes.size()), kBound / 10.0);
  EXPECT_GT(error, 0.0);
}

TEST_P(PagedAttentionTest, LargeScoresDoNotOverflow) {
  const AttentionShape shape{
      .num_heads = 1, .num_kv_heads = 1, .head_dim = 16, .dtype = DType::kF32};
  SequenceData sequence = MakeSequence(shape, 90, 5);
  for (float& q : sequence.q) q *= 1e4F;
  // The largest score takes all; it is far ahead of the others.
  const auto expected = Attend(shape, {{&sequence, 0, 90}}, Isa::kRef, &pool_)[0];
  const auto actual = Attend(shape, {{&sequence, 0, 90}}, GetParam(), &pool_)[0];
  EXPECT_TRUE(AllWithin<float>({actual.data(), 90, 16, 16}, {expected.data(), 90, 16, 16},
                               [](int64_t, int64_t) { return 0.05; }));
}

// Memory for the states of segments decides how many of them are shared out at a time, for tasks of
// one segment and of several, and never what comes out.
TEST(PagedAttentionSegments, MemoryForStatesShowsInNoBit) {
  if (HostCpuFeatures().Best() < Isa::kAvx2) GTEST_SKIP() << "this machine has no AVX2";
  ThreadPool one(1);
  ThreadPool three(3);
  const AttentionShape shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 16};
  const SequenceData longer = MakeSequence(shape, 5000, 31);
  const SequenceData shorter = MakeSequence(shape, 1100, 32);
  const std::vector<Chunk> chunks = {
      {&shorter, 1099, 1100}, {&longer, 4998, 5000}, {&shorter, 300, 301}, {&shorter, 1040, 1050}};
  const auto expected = Attend(shape, chunks, Isa::kAvx2, &one);
  // A row takes 18 floats; the longest task has 10 segments of up to 20 rows.
  for (const int64_t floats : {0, 100, 300, 1000, 2000, 1 << 20}) {
    const auto actual = AttendWith(
        shape, chunks, &three, 1,
        [&](const kernels::KvCacheView& cache, const kernels::PagedAttentionArgs& args) {
          kernels::PagedAttentionTiles(
              cache, args, {.pack = kernels::avx2::PackTile, .attend = kernels::avx2::AttendTile},
              &three, floats);
        });
    for (size_t i = 0; i < chunks.size(); ++i) {
      EXPECT_TRUE(SameBits(actual[i], expected[i])) << "chunk " << i << ", " << floats << " floats";
    }
  }
}

TEST(PagedAttentionVariants, AreEqualToTheBit) {
  if (HostCpuFeatures().Best() < Isa::kAvx512Vnni) GTEST_SKIP() << "this machine has no AVX-512";
  ThreadPool pool(2);
  for (const int64_t head_dim : {20, 64, 80, 128}) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16, DType::kI8}) {
      const AttentionShape shape{.num_heads = 7,
                                 .num_kv_heads = 1,
                                 .head_dim = head_dim,
                                 .sliding_window = 90,
                                 .dtype = dtype};
      const SequenceData sequence = MakeSequence(shape, 150, 9);
      const std::vector<Chunk> chunks = {{&sequence, 0, 150}, {&sequence, 149, 150}};
      const auto avx2 = Attend(shape, chunks, Isa::kAvx2, &pool);
      const auto avx512 = Attend(shape, chunks, Isa::kAvx512Vnni, &pool);
      EXPECT_TRUE(SameBits(avx2[0], avx512[0])) << ToString(dtype) << " " << head_dim;
      EXPECT_TRUE(SameBits(avx2[1], avx512[1])) << ToString(dtype) << " " << head_dim;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, PagedAttentionTest,
                         ::testing::Values(Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx),
                         [](const auto& variant) { return std::string(ToString(variant.param)); });

TEST(PagedAttentionReference, WeighsByHand) {
  // One head of one component, scale 1: scores ln 1 and ln 3 give weights 1/4 and 3/4.
  const AttentionShape shape{
      .num_heads = 1, .num_kv_heads = 1, .head_dim = 1, .dtype = DType::kF32};
  SequenceData sequence{.length = 2};
  sequence.q = {0.0F, 1.0F};
  sequence.k = {0.0F, std::log(3.0F)};
  sequence.v = {10.0F, 20.0F};
  ThreadPool pool(1);
  const auto out = Attend(shape, {{&sequence, 0, 2}}, Isa::kRef, &pool)[0];
  EXPECT_FLOAT_EQ(out[0], 10.0F);
  EXPECT_FLOAT_EQ(out[1], 17.5F);
}

}  // namespace
}  // namespace nibble::testing
