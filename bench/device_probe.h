// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What benchmarks of models ask of the device that computes one; plain, the measurement is in
// bench/cuda.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/meter_options.h"
#include "bench/roofline.h"
#include "engine/model/model.h"

namespace nibble::bench {

// A kind of op of a step, all layers together.
struct DeviceOp {
  std::string name;  // "qkv", "attention" ...
  int64_t calls = 0;
  double seconds = 0.0;
  double bytes = 0.0;  // of weights that are read; 0: it has none
  double ops = 0.0;    // 2 a product
  bool int8 = false;   // its products are; else of 16 bits
};

struct DeviceStep {
  double seconds = 0.0;  // of all launches in one graph
  std::vector<DeviceOp> ops;
};

class DeviceProbe {
 public:
  virtual ~DeviceProbe() = default;
  virtual absl::StatusOr<DevicePeaks> MeasurePeaks() = 0;
  // Of one step of `plan`. INVALID_ARGUMENT for a model that is not on the device.
  virtual absl::StatusOr<DeviceStep> TimeStep(engine::Model* model, const engine::StepPlan& plan,
                                              engine::KvCache* cache, ThreadPool* pool) = 0;
};

// Of CUDA's device `index`. UNAVAILABLE where there is none. Builds without CUDA: INVALID_ARGUMENT.
absl::StatusOr<std::unique_ptr<DeviceProbe>> OpenDeviceProbe(int index,
                                                             const MeterOptions& options = {});

}  // namespace nibble::bench
