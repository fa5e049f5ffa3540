// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Against the host sampler, which gets the same uniform numbers.
#include "kernels/sampling/cuda/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fmt/core.h"
#include "gtest/gtest.h"

#include "engine/sampling/sampler.h"
#include "tests/kernels/device/device_rows.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using ::nibble::testing::Random;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class DeviceSample : public ::nibble::testing::DeviceTest {
 protected:
  struct Row {
    std::vector<float> logits;
    engine::SamplingRow params;
  };

  // What the device chooses, rows `stride` apart with NaN between.
  std::vector<int32_t> Run(const std::vector<Row>& rows, int64_t stride) {
    const auto vocab_size = static_cast<int64_t>(rows[0].logits.size());
    const auto n = rows.size();
    std::vector<float> logits(n * static_cast<size_t>(stride), kNaN);
    std::vector<SampleParams> params;
    for (size_t i = 0; i < n; ++i) {
      std::copy(rows[i].logits.begin(), rows[i].logits.end(),
                logits.begin() + static_cast<int64_t>(i) * stride);
      const engine::SamplingRow& p = rows[i].params;
      params.push_back(
          {.temperature = p.temperature,
           .top_p = p.top_p,
           .min_p = p.min_p,
           .top_k = p.top_k,
           .uniform = engine::UniformFromCounter(p.seed, static_cast<uint64_t>(p.output_index))});
    }
    const auto device_logits = Upload(logits);
    const auto device_params = Upload(params);
    const auto tokens = Upload(std::vector<int32_t>(n + 1, -77));
    const auto bytes = SampleWorkspaceBytes(static_cast<int64_t>(n), vocab_size);
    const auto workspace = Upload(std::vector<uint8_t>(static_cast<size_t>(bytes), 0xA5));
    const absl::Status status = Sample({.num_rows = static_cast<int64_t>(n),
                                        .vocab_size = vocab_size,
                                        .logits = device_logits.data(),
                                        .stride = stride,
                                        .params = device_params.data(),
                                        .token_ids = tokens.data(),
                                        .workspace = workspace.data()},
                                       stream_.get());
    EXPECT_TRUE(status.ok()) << status;
    std::vector<int32_t> result = Download(tokens);
    EXPECT_EQ(result.back(), -77) << "written behind the last row";
    result.pop_back();
    return result;
  }

  void ExpectTheHosts(const std::vector<Row>& rows) {
    const auto vocab_size = static_cast<int64_t>(rows[0].logits.size());
    const std::vector<int32_t> chosen = Run(rows, vocab_size + 3);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::vector<float> logits = rows[i].logits;
      const engine::SampledToken host = engine::SampleRow(logits, rows[i].params);
      const engine::SamplingRow& p = rows[i].params;
      EXPECT_EQ(chosen[i], host.no_finite_logit ? -1 : host.token_id)
          << fmt::format("row {} of {} tokens, temperature {}, top_k {}, top_p {}, min_p {}", i,
                         vocab_size, p.temperature, p.top_k, p.top_p, p.min_p);
    }
  }

  static engine::SamplingRow RandomParams(Random* random) {
    engine::SamplingRow params;
    const float temperatures[] = {0.0F, 0.3F, 0.8F, 1.0F, 1.0F, 2.0F};
    params.temperature = temperatures[random->Int(0, 5)];
    const float top_ps[] = {1.0F, 1.0F, 0.95F, 0.5F, 0.1F, 1e-9F};
    params.top_p = top_ps[random->Int(0, 5)];
    const int32_t top_ks[] = {0, 0, 1, 5, 40, 1000, 2048, 3000};
    params.top_k = top_ks[random->Int(0, 7)];
    const float min_ps[] = {0.0F, 0.0F, 0.05F, 0.3F, 1.0F};
    params.min_p = min_ps[random->Int(0, 4)];
    params.seed = random->Bits();
    params.output_index = random->Int(0, 1000);
    return params;
  }
};

// A block for a row (up to 2048 tokens, or many rows), and several.
TEST_F(DeviceSample, ChoosesAsTheHost) {
  Random random(1);
  const std::pair<int64_t, int64_t> shapes[] = {{1, 3},    {2, 5},    {7, 20},   {100, 40},
                                                {515, 40}, {2048, 9}, {2049, 4}, {5003, 3},
                                                {9000, 2}, {20001, 1}};
  for (const auto& [vocab_size, num_rows] : shapes) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      std::vector<Row> rows;
      for (int64_t i = 0; i < num_rows; ++i) {
        const float spread = random.Uniform(0.1F, 6.0F);
        rows.push_back({random.Normals(vocab_size, spread), RandomParams(&random)});
      }
      ExpectTheHosts(rows);
    }
  }
}

// Logits in steps of a half: many are equal, and what is at the border goes by id.
TEST_F(DeviceSample, Ties) {
  Random random(2);
  for (const int64_t vocab_size : {50, 700, 5000}) {
    std::vector<Row> rows;
    for (int64_t i = 0; i < (vocab_size > 1000 ? 4 : 24); ++i) {
      std::vector<float> logits = random.Normals(vocab_size, 2.0F);
      for (float& logit : logits) logit = std::nearbyint(2.0F * logit) / 2.0F;
      rows.push_back({logits, RandomParams(&random)});
    }
    ExpectTheHosts(rows);
  }
  // Three logits, so that top_p cuts among equals that lie between better ones.
  std::vector<Row> few_logits;
  for (int i = 0; i < 150; ++i) {
    std::vector<float> logits(200);
    for (float& logit : logits) logit = static_cast<float>(random.Int(0, 2));
    few_logits.push_back({logits, {.top_p = random.Uniform(0.05F, 1.0F), .seed = random.Bits()}});
  }
  ExpectTheHosts(few_logits);
  // All are equal: the first top_k tokens.
  std::vector<Row> rows;
  for (const int32_t top_k : {0, 1, 17, 2999, 3000, 9999}) {
    for (const float top_p : {1.0F, 0.25F}) {
      rows.push_back({std::vector<float>(3000, -3.5F), RandomParams(&random)});
      rows.back().params.temperature = 1.0F;
      rows.back().params.top_k = top_k;
      rows.back().params.top_p = top_p;
    }
  }
  ExpectTheHosts(rows);
  ExpectTheHosts({rows[3]});
  for (Row& row : rows) row.params.temperature = 0.0F;
  for (const int32_t token : Run(rows, 3000)) EXPECT_EQ(token, 0);
}

TEST_F(DeviceSample, RowsWithNaNsAndInfinities) {
  Random random(3);
  const int64_t vocab_size = 300;
  std::vector<Row> rows;
  const auto add = [&](const std::vector<float>& logits) {
    for (int i = 0; i < 8; ++i) rows.push_back({logits, RandomParams(&random)});
  };
  const std::vector<float> plain = random.Normals(vocab_size, 3.0F);
  std::vector<float> logits = plain;
  for (size_t i = 0; i < logits.size(); i += 3) logits[i] = kNaN;
  add(logits);
  logits = plain;
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = i % 5 == 0 ? logits[i] : -kInfinity;
  add(logits);
  logits = plain;
  logits[7] = logits[100] = logits[299] = kInfinity;
  add(logits);
  logits.assign(logits.size(), -kInfinity);
  logits[200] = -1e30F;
  add(logits);
  logits[200] = -kInfinity;
  add(logits);
  logits.assign(logits.size(), kNaN);
  add(logits);
  logits[5] = kInfinity;
  add(logits);
  logits.assign(logits.size(), std::numeric_limits<float>::max());
  logits[3] = -std::numeric_limits<float>::max();
  add(logits);
  logits.assign(logits.size(), 0.0F);
  logits[1] = -0.0F;
  logits[2] = 1e-40F;
  add(logits);
  ExpectTheHosts(rows);

  // Fewer tokens than top_k, of several rows that a block has one after the other.
  rows.clear();
  for (int i = 0; i < 60; ++i) {
    std::vector<float> few(vocab_size, i % 2 == 0 ? kNaN : -kInfinity);
    for (int j = 0; j < 20; ++j) few[random.Bits() % few.size()] = random.Normal();
    rows.push_back({few, {.top_k = i % 3 == 0 ? 5 : 250, .seed = random.Bits()}});
  }
  ExpectTheHosts(rows);
}

TEST_F(DeviceSample, ExtremesOfTheParameters) {
  Random random(4);
  std::vector<Row> rows;
  const auto add = [&](const engine::SamplingRow& params) {
    rows.push_back({random.Normals(1000, 2.0F), params});
    rows.back().params.seed = random.Bits();
  };
  for (const float temperature : {1e-30F, 1e-3F, 1e3F, 1e30F}) {
    for (const int32_t top_k : {0, 3}) {
      for (const float top_p : {1.0F, 0.9F}) {
        add({.temperature = temperature, .top_p = top_p, .top_k = top_k});
      }
    }
  }
  add({.top_p = std::numeric_limits<float>::denorm_min()});
  add({.top_p = 0.99999994F});
  add({.top_k = 1});
  add({.top_k = 999});
  add({.top_k = 1000});
  add({.top_k = INT32_MAX});
  add({.min_p = 1.0F});
  add({.top_k = 10, .min_p = 1.0F});
  add({.min_p = 1e-38F});
  ExpectTheHosts(rows);
}

// Around what one block draws from a list of.
TEST_F(DeviceSample, TopOfThousands) {
  Random random(6);
  std::vector<Row> rows;
  for (const int32_t top_k : {2047, 2048, 2049, 5002}) {
    for (const float top_p : {1.0F, 0.7F}) {
      rows.push_back(
          {random.Normals(5003, 0.5F), {.top_p = top_p, .top_k = top_k, .seed = random.Bits()}});
    }
  }
  ExpectTheHosts(rows);  // a block each
  for (size_t i = 0; i < rows.size(); i += 2) {
    ExpectTheHosts({rows[i], rows[i + 1]});  // several
  }
}

// Nearly equal weights: the largest sums there are.
TEST_F(DeviceSample, TheLargestVocabulary) {
  Random random(7);
  std::vector<float> logits(1 << 18);
  for (float& logit : logits) logit = random.Uniform(-0.01F, 0.0F);
  for (const auto& [top_k, top_p] :
       {std::pair<int32_t, float>{0, 1.0F}, {0, 0.5F}, {200'000, 0.9F}, {50, 1.0F}}) {
    ExpectTheHosts({{logits, {.top_p = top_p, .top_k = top_k, .seed = random.Bits()}}});
  }
}

// What filters everything leaves the most likely token.
TEST_F(DeviceSample, NothingKept) {
  std::vector<float> logits(100, 0.0F);
  logits[42] = 1.0F;
  for (const int32_t top_k : {0, 5}) {
    for (const float top_p : {1.0F, 0.5F}) {
      const engine::SamplingRow params{.top_p = top_p, .top_k = top_k, .min_p = 2.0F};
      EXPECT_EQ(Run({{logits, params}}, 100), std::vector<int32_t>{42});
    }
  }
}

// The number of blocks of a row depends on the number of rows; its token does not.
TEST_F(DeviceSample, ARowDependsOnItselfAlone) {
  Random random(5);
  const int64_t vocab_size = 6100;
  std::vector<Row> rows;
  for (int i = 0; i < 9; ++i) {
    rows.push_back({random.Normals(vocab_size, 2.0F), RandomParams(&random)});
    rows.back().params.temperature = 1.0F;
  }
  const std::vector<int32_t> together = Run(rows, vocab_size);
  EXPECT_EQ(Run(rows, vocab_size), together);
  EXPECT_EQ(Run(rows, vocab_size + 4), together);
  EXPECT_EQ(Run(rows, vocab_size + 1), together);  // rows that are not aligned
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(Run({rows[i]}, vocab_size), std::vector<int32_t>{together[i]}) << i;
  }
}

TEST_F(DeviceSample, RefusesWhatItHasNot) {
  const auto run = [&](const SampleArgs& args) { return Sample(args, stream_.get()); };
  EXPECT_EQ(run({.num_rows = 1, .vocab_size = 262145, .stride = 262145}).message(),
            "the vocabulary has 262145 tokens, the limits are 1 and 262144");
  EXPECT_EQ(run({.num_rows = 1, .vocab_size = 8, .stride = 7}).message(),
            "the stride of logits is 7, wanted are 8 or more");
  EXPECT_EQ(run({.num_rows = -1, .vocab_size = 8, .stride = 8}).message(),
            "the number of rows is -1, the limits are 0 and 2147483648");
  EXPECT_TRUE(run({.num_rows = 0, .vocab_size = 8, .stride = 8}).ok());
  EXPECT_EQ(run({.num_rows = 1, .vocab_size = 10000, .stride = 10000}).code(),
            absl::StatusCode::kInvalidArgument);  // no workspace
}

}  // namespace
}  // namespace nibble::kernels::cuda
