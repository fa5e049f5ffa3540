// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda/device_meter.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "bench/cuda/device_peaks.h"
#include "bench/cuda/random_on_device.h"

namespace nibble::bench {
namespace {

constexpr int64_t kRotatedCaches = 3;
constexpr int kReads = 20;  // in a graph

}  // namespace

absl::StatusOr<DeviceMeter> DeviceMeter::Create(int index, const MeterOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<gpu::DeviceCaps> devices, gpu::ListDevices());
  if (devices.empty()) {
    return Unavailable("--device cuda: no CUDA device: {}", gpu::WhyNoDevice());
  }
  if (index < 0 || index >= std::ssize(devices)) {
    return InvalidArgument("CUDA device {} was asked for, there are {}", index, devices.size());
  }
  DeviceMeter meter;
  meter.options_ = options;
  meter.caps_ = devices[static_cast<size_t>(index)];
  meter.num_devices_ = static_cast<int>(devices.size());
  NIBBLE_ASSIGN_OR_RETURN(meter.stream_, gpu::Stream::Create());
  NIBBLE_ASSIGN_OR_RETURN(meter.sink_, gpu::DeviceBuffer<uint32_t>::Create(1));
  return meter;
}

int64_t DeviceMeter::rotated_bytes() const {
  return options_.rotated_bytes > 0 ? options_.rotated_bytes : kRotatedCaches * caps_.l2_bytes;
}

nlohmann::ordered_json DeviceMeter::Describe() const {
  return {{"name", caps_.name},
          {"sm", caps_.sm},
          {"num_devices", num_devices_},
          {"num_sms", caps_.num_sms},
          {"l2_bytes", caps_.l2_bytes}};
}

absl::StatusOr<Timing> DeviceMeter::Measure(int calls,
                                            const std::function<absl::Status(int)>& body) const {
  // Whatever is loaded or chosen at a first call; another call may need another kernel.
  for (int i = 0; i < calls; ++i) NIBBLE_RETURN_IF_ERROR(body(i));
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());
  NIBBLE_RETURN_IF_ERROR(gpu::GraphExec::BeginCapture(stream_.get()));
  absl::Status status;
  for (int i = 0; i < calls && status.ok(); ++i) status = body(i);
  auto graph = gpu::GraphExec::EndCapture(stream_.get());
  NIBBLE_RETURN_IF_ERROR(status);
  NIBBLE_RETURN_IF_ERROR(graph.status());
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Event begin, gpu::Event::Create(/*timing=*/true));
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Event end, gpu::Event::Create(/*timing=*/true));
  NIBBLE_RETURN_IF_ERROR(graph->Launch(stream_.get()));
  std::vector<double> runs;
  double total = 0.0;
  while (static_cast<int>(runs.size()) < options_.min_runs || total < options_.seconds) {
    NIBBLE_RETURN_IF_ERROR(begin.Record(stream_.get()));
    NIBBLE_RETURN_IF_ERROR(graph->Launch(stream_.get()));
    NIBBLE_RETURN_IF_ERROR(end.Record(stream_.get()));
    NIBBLE_RETURN_IF_ERROR(end.Synchronize());
    NIBBLE_ASSIGN_OR_RETURN(const float ms, gpu::ElapsedMs(begin, end));
    total += std::max<double>(static_cast<double>(ms), 1e-3) * 1e-3;
    runs.push_back(static_cast<double>(ms) * 1e-3 / calls);
  }
  return Summarize(std::move(runs));
}

absl::StatusOr<DevicePeaks> DeviceMeter::MeasurePeaks() const {
  NIBBLE_ASSIGN_OR_RETURN(const double read, ReadBytesPerSecond());
  NIBBLE_ASSIGN_OR_RETURN(const double int8, OpsPerSecond(LaunchInt8Peak));
  NIBBLE_ASSIGN_OR_RETURN(const double bf16, OpsPerSecond(LaunchBf16Peak));
  return DevicePeaks{.read_bytes_per_s = read, .int8_op_per_s = int8, .bf16_op_per_s = bf16};
}

absl::StatusOr<double> DeviceMeter::ReadBytesPerSecond() const {
  const int64_t bytes = (rotated_bytes() + 4095) / 4096 * 4096;
  NIBBLE_ASSIGN_OR_RETURN(const auto data,
                          RandomOnDevice(RandomKind::kBits, bytes / 2, 4, stream_.get()));
  NIBBLE_ASSIGN_OR_RETURN(const Timing timing, Measure(kReads, [&](int) {
                            return LaunchRead(data.data(), bytes, sink_.data(), caps_,
                                              stream_.get());
                          }));
  return static_cast<double>(bytes) / timing.best_s;
}

absl::StatusOr<double> DeviceMeter::OpsPerSecond(LaunchPeak* launch) const {
  double ops = 0.0;
  NIBBLE_ASSIGN_OR_RETURN(const Timing timing, Measure(1, [&](int) -> absl::Status {
                            NIBBLE_ASSIGN_OR_RETURN(ops, launch(options_.peak_rounds, sink_.data(),
                                                                caps_, stream_.get()));
                            return absl::OkStatus();
                          }));
  return ops / timing.best_s;
}

}  // namespace nibble::bench
