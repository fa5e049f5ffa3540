// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The instructions of kernels/device/amx_tile.h against plain loops, run by the CPU or, without
// AMX, by the emulator; and what the model of the tile unit refuses.

#include "kernels/device/amx_tile.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "base/float16.h"
#include "tests/kernels/gemm/amx_emulator.h"
#include "tests/kernels/gemm/amx_tile_model.h"
#include "tests/testing/random.h"

namespace nibble::kernels::amx {
namespace {

using ::testing::StrEq;

constexpr int kRows = 5;         // of A and C
constexpr int kColumns = 7;      // of C
constexpr int kDepth = 6;        // groups of 4 bytes of k
constexpr int64_t kStride = 80;  // of all matrices, larger than a row

// C in tile 2, A in 7, B in 4.
TileConfig SmallTiles() {
  TileConfig config;
  config.rows[2] = kRows;
  config.row_bytes[2] = kColumns * 4;
  config.rows[7] = kRows;
  config.row_bytes[7] = kDepth * 4;
  config.rows[4] = kDepth;
  config.row_bytes[4] = kColumns * 4;
  return config;
}

struct Memory {
  explicit Memory(uint32_t seed) : bytes(static_cast<size_t>(kStride * 16)) {
    testing::Random random(seed);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.Bits());
  }
  template <typename T>
  T At(int row, int64_t offset) const {
    T value;
    std::memcpy(&value, bytes.data() + row * kStride + offset, sizeof(value));
    return value;
  }
  template <typename T>
  void Set(int row, int64_t offset, T value) {
    std::memcpy(bytes.data() + row * kStride + offset, &value, sizeof(value));
  }
  std::vector<uint8_t> bytes;
};

template <typename Dot>
Memory RunTiles(const Memory& a, const Memory& b, const Memory& c, const Dot& dot) {
  Memory result = c;
  ConfigureTiles(SmallTiles());
  LoadTile<7>(a.bytes.data(), kStride);
  LoadTile<4>(b.bytes.data(), kStride);
  LoadTile<2>(result.bytes.data(), kStride);
  dot();
  StoreTile<2>(result.bytes.data(), kStride);
  ReleaseTiles();
  return result;
}

class AmxTile : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!InstallAmxEmulator()) {
      GTEST_SKIP() << "this CPU (" << HostCpuFeatures().name << ") has no avx512vnni";
    }
  }
};

TEST_F(AmxTile, SignedDotWraps) {
  const Memory a(1);
  const Memory b(2);
  const Memory c(3);
  Memory expected = c;
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      auto sum = c.At<uint32_t>(m, 4 * n);
      for (int k = 0; k < 4 * kDepth; ++k) {
        sum += static_cast<uint32_t>(a.At<int8_t>(m, k) * b.At<int8_t>(k / 4, 4 * n + k % 4));
      }
      expected.Set(m, 4 * n, sum);
    }
  }
  EXPECT_EQ(RunTiles(a, b, c, DotSigned<2, 7, 4>).bytes, expected.bytes);
}

// Magnitudes far apart, so that another order of additions would show; and subnormals.
TEST_F(AmxTile, Bf16DotHasTwoChains) {
  testing::Random random(4);
  Memory a(5);
  Memory b(6);
  Memory c(7);
  const auto number = [&] {
    if (random.Int(0, 15) == 0) return uint16_t{0x0012};  // subnormal
    return ToBFloat16(std::ldexp(random.Uniform(-1.0F, 1.0F), static_cast<int>(random.Int(-9, 9))))
        .bits;
  };
  for (int r = 0; r < 16; ++r) {
    for (int i = 0; i < 32; ++i) {
      a.Set(r, 2 * i, number());
      b.Set(r, 2 * i, number());
    }
    for (int i = 0; i < 16; ++i) c.Set(r, 4 * i, random.Normal());
  }
  c.Set(0, 0, 0x1p-130F);
  Memory expected = c;
  const auto flush = [](float x) { return std::abs(x) < 0x1p-126F ? std::copysign(0.0F, x) : x; };
  const auto load = [&](const Memory& memory, int row, int64_t offset) {
    return flush(ToFloat(BFloat16{memory.At<uint16_t>(row, offset)}));
  };
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      float even = 0.0F;
      float odd = 0.0F;
      for (int k = 0; k < kDepth; ++k) {
        even = flush(std::fma(load(a, m, 4 * k), load(b, k, 4 * n), even));
        odd = flush(std::fma(load(a, m, 4 * k + 2), load(b, k, 4 * n + 2), odd));
      }
      expected.Set(m, 4 * n, flush(flush(c.At<float>(m, 4 * n)) + flush(even + odd)));
    }
  }
  EXPECT_EQ(RunTiles(a, b, c, DotBf16<2, 7, 4>).bytes, expected.bytes);
}

TEST_F(AmxTile, ZeroClearsATile) {
  const Memory c(8);
  const Memory result = RunTiles(c, c, c, ZeroTile<2>);
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kColumns; ++n) EXPECT_EQ(result.At<int32_t>(m, 4 * n), 0);
    EXPECT_EQ(result.At<uint8_t>(m, 4 * kColumns), c.At<uint8_t>(m, 4 * kColumns));
  }
}

TEST(AmxTileModel, RefusesConfigurations) {
  TileModel tiles;
  EXPECT_EQ(tiles.Configure(SmallTiles()), nullptr);
  TileConfig config = SmallTiles();
  config.rows[2] = 17;
  EXPECT_THAT(tiles.Configure(config), StrEq("more than 16 rows"));
  config = SmallTiles();
  config.row_bytes[4] = 65;
  EXPECT_THAT(tiles.Configure(config), StrEq("more than 64 bytes in a row"));
  config = SmallTiles();
  config.rows[1] = 3;
  EXPECT_THAT(tiles.Configure(config), StrEq("rows without bytes or bytes without rows"));
  config = SmallTiles();
  config.palette = 2;
  EXPECT_THAT(tiles.Configure(config), StrEq("no such palette"));
  config = SmallTiles();
  config.rows[8] = 1;
  config.row_bytes[8] = 4;
  EXPECT_THAT(tiles.Configure(config), StrEq("palette 1 has 8 tiles"));
  config = SmallTiles();
  config.reserved[5] = 1;
  EXPECT_THAT(tiles.Configure(config), StrEq("a reserved byte is not zero"));
  EXPECT_EQ(tiles.Zero(2), nullptr) << "a refused configuration changes nothing";
}

TEST(AmxTileModel, RefusesTilesWithoutConfiguration) {
  TileModel tiles;
  uint8_t memory[64] = {};
  EXPECT_THAT(tiles.Load(0, memory, 0), StrEq("tiles are not configured"));
  ASSERT_EQ(tiles.Configure(SmallTiles()), nullptr);
  EXPECT_THAT(tiles.Load(0, memory, 0), StrEq("a tile without a shape"));
  EXPECT_EQ(tiles.Load(2, memory, 0), nullptr);
  EXPECT_EQ(tiles.Release(), nullptr);
  EXPECT_THAT(tiles.Store(2, memory, 0), StrEq("tiles are not configured"));
}

TEST(AmxTileModel, RefusesProductsThatDoNotFit) {
  TileModel tiles;
  TileConfig config = SmallTiles();
  config.rows[0] = kRows + 1;
  config.row_bytes[0] = kColumns * 4;
  config.rows[1] = kDepth;
  config.row_bytes[1] = kColumns * 4 - 4;
  config.rows[3] = kRows;
  config.row_bytes[3] = kDepth * 4 - 4;
  config.rows[5] = kRows;
  config.row_bytes[5] = 6;
  ASSERT_EQ(tiles.Configure(config), nullptr);
  EXPECT_EQ(tiles.DotSigned(2, 7, 4), nullptr);
  EXPECT_EQ(tiles.DotBf16(2, 7, 4), nullptr);
  EXPECT_THAT(tiles.DotSigned(0, 7, 4), StrEq("C and A differ in rows"));
  EXPECT_THAT(tiles.DotBf16(2, 7, 1), StrEq("C and B differ in columns"));
  EXPECT_THAT(tiles.DotSigned(2, 3, 4), StrEq("A's columns are not B's rows"));
  EXPECT_THAT(tiles.DotSigned(2, 2, 4), StrEq("one tile in two places"));
  EXPECT_THAT(tiles.DotSigned(2, 5, 4), StrEq("a row that is no multiple of 4 bytes"));
}

}  // namespace
}  // namespace nibble::kernels::amx
