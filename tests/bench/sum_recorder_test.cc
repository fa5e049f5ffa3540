// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/sum_recorder.h"

#include <cmath>
#include <thread>
#include <utility>

#include "gtest/gtest.h"

#include "base/thread_pool.h"
#include "comm/group.h"
#include "tests/testing/random.h"

namespace nibble::bench {
namespace {

using comm::AllReduceOptions;

constexpr int kRanks = 3;

// All ranks' rows become their sums; `recorder` may be null.
void Sum(const AllReduceOptions& options, SumRecorder* recorder,
         std::vector<std::vector<float>>* parts, int64_t row_size) {
  auto group = comm::MakeThreadGroup(kRanks, options);
  ASSERT_TRUE(group.ok()) << group.status();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      comm::Communicator* communicator = (*group)[static_cast<size_t>(rank)].get();
      std::unique_ptr<comm::Communicator> tap;
      if (recorder != nullptr) {
        tap = recorder->Wrap(communicator);
        communicator = tap.get();
      }
      ThreadPool pool(1);
      std::vector<float>& part = (*parts)[static_cast<size_t>(rank)];
      const auto num_rows = static_cast<int64_t>(part.size()) / row_size;
      std::vector<float> embedding(part.size(), 0.0F);
      ASSERT_TRUE(communicator
                      ->AllReduce({.data = embedding.data(),
                                   .num_rows = num_rows,
                                   .row_size = row_size,
                                   .exact = true},
                                  &pool)
                      .ok());
      const absl::Status status = communicator->AllReduce(
          {.data = part.data(), .num_rows = num_rows, .row_size = row_size}, &pool);
      EXPECT_TRUE(status.ok()) << status;
    });
  }
  for (std::thread& thread : threads) thread.join();
}

double Noise(const std::vector<float>& got, const std::vector<float>& want) {
  double noise = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    noise += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
  }
  return noise;
}

// What is said of a codec is what an all-reduce with it does, one-shot or two-shot.
TEST(SumRecorderTest, LossesAreThoseOfAllReduces) {
  for (const comm::CodecDesc codec : {comm::CodecDesc{.bits = 4, .group_size = 64},
                                      {.bits = 3, .group_size = 32, .spikes = true},
                                      {.bits = 5, .rotation = true}}) {
    for (const int64_t num_rows : {3, 700}) {
      constexpr int64_t kRowSize = 200;
      testing::Random random(4);
      std::vector<std::vector<float>> parts;
      for (int rank = 0; rank < kRanks; ++rank)
        parts.push_back(random.Normals(num_rows * kRowSize));
      SumRecorder recorder({.num_ranks = kRanks,
                            .num_sums = 1,
                            .codecs = {{.bits = 8}, codec},
                            .isa = HostCpuFeatures().Best()});
      std::vector<std::vector<float>> exact = parts;
      Sum({.mode = AllReduceOptions::Mode::kNone}, &recorder, &exact, kRowSize);
      std::vector<std::vector<float>> coded = parts;
      Sum({.mode = AllReduceOptions::Mode::kFixed, .codec = codec}, nullptr, &coded, kRowSize);
      const double noise = Noise(coded[1], exact[1]);
      const RecordedSum& sum = recorder.sums()[0];
      EXPECT_EQ(sum.num_rows, num_rows);
      const SumLoss& loss = sum.losses[1];
      EXPECT_NEAR(loss.noise / noise, 1.0, 1e-5) << ToString(codec) << ", " << num_rows << " rows";
      EXPECT_NEAR(loss.signal / Noise(exact[0], std::vector<float>(exact[0].size())), 1.0, 1e-9);
      EXPECT_NEAR(sum.parts.Kurtosis(), 3.0, 0.6);
      EXPECT_NEAR(sum.parts.Rms(), 1.0, 0.1);
      EXPECT_NEAR(sum.sum.Rms(), std::sqrt(3.0), 0.2);
    }
  }
}

TEST(SumRecorderTest, Spread) {
  const std::vector<float> x = {-3.0F, 1.0F, 1.0F, 1.0F};
  Spread spread;
  spread.Add(x.data(), 3);
  spread.Add(x.data() + 3, 1);
  EXPECT_DOUBLE_EQ(spread.Rms(), std::sqrt(3.0));
  EXPECT_DOUBLE_EQ(spread.MaxOverRms(), std::sqrt(3.0));
  EXPECT_DOUBLE_EQ(spread.Kurtosis(), 84.0 / 4 / 9);
  EXPECT_DOUBLE_EQ(Decibels(100.0, 1.0), 20.0);
}

}  // namespace
}  // namespace nibble::bench
