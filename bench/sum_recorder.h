// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Looks at what ranks that are threads of one process sum: before an all-reduce goes on, all ranks
// meet, and each tries its share of the codecs on everybody's part.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "comm/codec/codec.h"
#include "comm/communicator.h"

namespace nibble::bench {

// Of values that are about zero in the mean.
class Spread {
 public:
  void Add(const float* x, int64_t count);
  double Rms() const;
  double MaxOverRms() const;
  double Kurtosis() const;  // fourth moment over the square of the second: 3 for a normal one

 private:
  int64_t count_ = 0;
  double squares_ = 0.0;
  double fourths_ = 0.0;
  double max_ = 0.0;
};

// Squares summed over all values: of the float32 sum, and of what a codec's all-reduce differs from
// it (parts are coded, summed, and the sum coded again).
struct SumLoss {
  double signal = 0.0;
  double noise = 0.0;
};

// One of the all-reduces of a step, over all steps.
struct RecordedSum {
  int64_t num_rows = 0;
  int64_t max_rows = 0;  // of one message
  Spread parts;          // of all ranks
  Spread sum;
  std::vector<SumLoss> losses;  // [codecs]
};

// 10 log10: infinite for no noise, NaN for no signal either.
double Decibels(double signal, double noise);

struct SumRecorderOptions {
  int num_ranks = 2;
  size_t num_sums = 0;  // of a step: all-reduces that follow the exact one it begins with
  std::vector<comm::CodecDesc> codecs;
  Isa isa = Isa::kRef;
};

// Ranks write what is their own while others do, and nobody reads before all have ended.
class SumRecorder {
 public:
  explicit SumRecorder(SumRecorderOptions options);

  // A rank's communicator that records and passes everything on to `next`, which outlives it as the
  // recorder does. Once for each rank.
  std::unique_ptr<comm::Communicator> Wrap(comm::Communicator* next);
  const std::vector<RecordedSum>& sums() const { return sums_; }

 private:
  class Tap;

  const SumRecorderOptions options_;
  std::vector<RecordedSum> sums_;
  std::vector<const float*> parts_;  // [num_ranks], of the all-reduce under way
};

}  // namespace nibble::bench
