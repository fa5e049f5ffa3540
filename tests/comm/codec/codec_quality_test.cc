// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a two-step all-reduce of 8 ranks keeps of sums: floors of the signal to noise ratio.

#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "comm/codec/codec.h"
#include "tests/comm/codec/codec_cases.h"

namespace nibble::comm {
namespace {

using ::nibble::testing::Random;

constexpr int kRanks = 8;
constexpr int64_t kRows = 16;
constexpr int64_t kRowSize = 2048;

// Partial sums: Gaussian, and with `outliers` a channel in 200 is 20 times as large on every rank.
std::vector<std::vector<float>> PartialSums(bool outliers) {
  Random random(11);
  std::vector<float> gain(static_cast<size_t>(kRowSize), 1.0F);
  for (int64_t i = 0; outliers && i < kRowSize / 200; ++i) {
    gain[static_cast<size_t>(random.Int(0, kRowSize - 1))] = 20.0F;
  }
  std::vector<std::vector<float>> ranks;
  for (int rank = 0; rank < kRanks; ++rank) {
    ranks.push_back(random.Normals(kRows * kRowSize));
    for (size_t i = 0; i < ranks.back().size(); ++i) {
      ranks.back()[i] *= gain[i % static_cast<size_t>(kRowSize)];
    }
  }
  return ranks;
}

// Codes every rank's values, reduces the codes and decodes: what the collective does.
double TwoStepDb(const CodecDesc& desc, const std::vector<std::vector<float>>& ranks) {
  const Isa isa = HostCpuFeatures().Best();
  const RowGroups groups{kRowSize, desc.group_size};
  const int64_t count = kRows * groups.groups_per_row();
  std::vector<std::vector<uint8_t>> codes;
  std::vector<const uint8_t*> pieces;
  std::vector<float> exact(ranks[0].size(), 0.0F);
  for (const std::vector<float>& x : ranks) {
    codes.emplace_back(static_cast<size_t>(EncodedBytes(desc, count)));
    Encode(desc, groups, x.data(), 0, count, codes.back().data(), isa);
    for (size_t i = 0; i < x.size(); ++i) exact[i] += x[i];
  }
  for (const std::vector<uint8_t>& code : codes) pieces.push_back(code.data());
  std::vector<uint8_t> sum(codes[0].size());
  ReduceEncoded(desc, pieces.data(), kRanks, count, sum.data(), isa);
  std::vector<float> decoded(exact.size());
  Decode(desc, groups, sum.data(), 0, count, decoded.data(), isa);
  return SqnrDb(exact, decoded);
}

TEST(CodecQualityTest, TwoStepsKeepWhatTheySaid) {
  struct Floor {
    CodecDesc desc;
    double gaussian_db;
    double outliers_db;
  };
  // Simulated values less about half a dB; where log2 scales stand, less what they cost (0.4..0.6).
  const std::vector<Floor> floors = {
      {{.bits = 8}, 41.0, 34.3},
      {{.bits = 6}, 29.0, 22.2},
      {{.bits = 5}, 22.8, 16.1},
      {{.bits = 4}, 16.5, 9.7},
      {{.bits = 4, .group_size = 32}, 18.6, 15.5},
      {{.bits = 4, .spikes = true}, 17.8, 19.3},
      {{.bits = 4, .rotation = true}, 16.5, 17.9},
      {{.bits = 3, .group_size = 32, .spikes = true}, 14.2, 17.7},
      {{.bits = 2, .group_size = 32, .spikes = true}, 6.6, 10.0},
      {{.bits = 2, .group_size = 32}, 4.2, 1.1},
      {{.bits = 8, .scale = ScaleFormat::kLog2Int8}, 40.4, 33.7},
      {{.bits = 4, .scale = ScaleFormat::kLog2Int8}, 15.9, 9.1},
  };
  const auto gaussian = PartialSums(false);
  const auto outliers = PartialSums(true);
  for (const Floor& floor : floors) {
    const double gaussian_db = TwoStepDb(floor.desc, gaussian);
    const double outliers_db = TwoStepDb(floor.desc, outliers);
    EXPECT_GT(gaussian_db, floor.gaussian_db) << ToString(floor.desc);
    EXPECT_GT(outliers_db, floor.outliers_db) << ToString(floor.desc);
    RecordProperty(ToString(floor.desc), std::to_string(gaussian_db) + " dB Gaussian, " +
                                             std::to_string(outliers_db) + " dB with outliers");
  }
}

// Rotated sums of rotated codes are the rotation of sums: nothing but rounding tells them apart.
TEST(CodecQualityTest, RotationIsUndone) {
  const auto ranks = PartialSums(true);
  EXPECT_GT(TwoStepDb({.bits = 8, .rotation = true}, ranks), 35.3);
  EXPECT_GT(TwoStepDb({.bits = 8, .group_size = 32, .spikes = true, .rotation = true}, ranks),
            35.3);
}

}  // namespace
}  // namespace nibble::comm
