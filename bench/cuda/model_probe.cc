// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <utility>

#include "bench/cuda/device_meter.h"
#include "bench/device_probe.h"
#include "engine/model/cuda/cuda_decoder.h"

namespace nibble::bench {
namespace {

constexpr int kRuns = 11;  // of each graph; the median counts

class CudaProbe final : public DeviceProbe {
 public:
  explicit CudaProbe(DeviceMeter meter) : meter_(std::move(meter)) {}

  absl::StatusOr<DevicePeaks> MeasurePeaks() override { return meter_.MeasurePeaks(); }

  absl::StatusOr<DeviceStep> TimeStep(engine::Model* model, const engine::StepPlan& plan,
                                      engine::KvCache* cache, ThreadPool* pool) override {
    auto* const decoder = dynamic_cast<engine::CudaDecoderModel*>(model);
    if (decoder == nullptr) return InvalidArgument("the model is not on a CUDA device");
    NIBBLE_ASSIGN_OR_RETURN(const engine::StepTime time,
                            decoder->TimeStep(plan, cache, kRuns, pool));
    DeviceStep step{.seconds = time.seconds};
    for (const engine::StepOpTime& op : time.ops) {
      step.ops.push_back({.name = std::string(ToString(op.op)),
                          .calls = op.calls,
                          .seconds = op.seconds,
                          .bytes = static_cast<double>(op.weight_bytes),
                          .ops = op.operations,
                          .int8 = op.int8});
    }
    return step;
  }

 private:
  DeviceMeter meter_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceProbe>> OpenDeviceProbe(int index,
                                                             const MeterOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(DeviceMeter meter, DeviceMeter::Create(index, options));
  return std::make_unique<CudaProbe>(std::move(meter));
}

}  // namespace nibble::bench
