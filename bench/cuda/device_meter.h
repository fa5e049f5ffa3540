// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A device that is measured: its stream, timings of graphs on it, and its own limits.
//
//   NIBBLE_ASSIGN_OR_RETURN(const DeviceMeter meter, DeviceMeter::Create(0, options));
//   NIBBLE_ASSIGN_OR_RETURN(const DevicePeaks peaks, meter.MeasurePeaks());
//   NIBBLE_ASSIGN_OR_RETURN(const Timing timing, meter.Measure(20, [&](int call) {
//                             return Launch(copies[call % num_copies], meter.stream());
//                           }));
#pragma once

#include <cstdint>
#include <functional>

#include "nlohmann/json_fwd.hpp"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/status.h"
#include "bench/meter_options.h"
#include "bench/roofline.h"
#include "bench/timing.h"

namespace nibble::bench {

class DeviceMeter {
 public:
  // CUDA's device `index`. UNAVAILABLE where there is none.
  static absl::StatusOr<DeviceMeter> Create(int index, const MeterOptions& options);

  const gpu::DeviceCaps& caps() const { return caps_; }
  cudaStream_t stream() const { return stream_.get(); }
  absl::Status Synchronize() const { return stream_.Synchronize(); }
  // Copies of what is read take as many bytes together, so that none is in the second-level cache;
  // so does what the peak of reading reads.
  int64_t rotated_bytes() const;
  // For the report: name, sm, how many devices this process sees, num_sms, l2_bytes.
  nlohmann::ordered_json Describe() const;

  // Seconds of one call of `body`, which is given 0, 1, ...: `calls` of them are captured, and the
  // graph launched several times between two events. Before that each runs once.
  absl::StatusOr<Timing> Measure(int calls, const std::function<absl::Status(int)>& body) const;

  // By kernels that do nothing else.
  absl::StatusOr<DevicePeaks> MeasurePeaks() const;

 private:
  absl::StatusOr<double> ReadBytesPerSecond() const;
  // By a loop of products alone.
  using LaunchPeak = absl::StatusOr<double>(int rounds, uint32_t* sink, const gpu::DeviceCaps& caps,
                                            cudaStream_t stream);
  absl::StatusOr<double> OpsPerSecond(LaunchPeak* launch) const;

  MeterOptions options_;
  gpu::DeviceCaps caps_;
  int num_devices_ = 0;
  gpu::Stream stream_;
  gpu::DeviceBuffer<uint32_t> sink_;
};

}  // namespace nibble::bench
