// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/step_ops.h"

#include <algorithm>
#include <utility>

#include "nlohmann/json.hpp"

#include "bench/report.h"

namespace nibble::bench {
namespace {

double PeakOf(const DeviceOp& op, const DevicePeaks& peaks) {
  return op.int8 ? peaks.int8_op_per_s : peaks.bf16_op_per_s;
}

// Seconds that the peaks allow.
double LeastSeconds(const DeviceOp& op, const DevicePeaks& peaks) {
  return std::max(op.bytes / peaks.read_bytes_per_s, op.ops / PeakOf(op, peaks));
}

nlohmann::ordered_json ToJson(const DeviceOp& op, double step_s, const DevicePeaks& peaks) {
  nlohmann::ordered_json json = {{"op", op.name},
                                 {"calls", op.calls},
                                 {"us", Rounded(op.seconds * 1e6)},
                                 {"share_of_step", Rounded(op.seconds / step_s)}};
  if (op.bytes > 0.0) {
    json["share_of_read"] = Rounded(op.bytes / op.seconds / peaks.read_bytes_per_s);
  }
  if (op.ops > 0.0) {
    json["share_of_peak"] = Rounded(op.ops / op.seconds / PeakOf(op, peaks));
  }
  const double least = LeastSeconds(op, peaks);
  if (least > 0.0) json["share_of_roofline"] = Rounded(least / op.seconds);
  return json;
}

}  // namespace

void AddStepOps(const DeviceStep& step, const AttentionWork& attention, double step_s,
                const DevicePeaks& peaks, nlohmann::ordered_json* row) {
  nlohmann::ordered_json ops = nlohmann::ordered_json::array();
  double sum_s = 0.0;
  double least_s = 0.0;
  for (DeviceOp op : step.ops) {
    if (op.name == "attention") {
      op.bytes = attention.cache_bytes;
      op.ops = attention.ops;
    }
    sum_s += op.seconds;
    least_s += LeastSeconds(op, peaks);
    ops.push_back(ToJson(op, step_s, peaks));
  }
  (*row)["device_ms"] = Rounded(step.seconds * 1e3);
  (*row)["gaps_ms"] = Rounded((step.seconds - sum_s) * 1e3);
  (*row)["host_ms"] = Rounded((step_s - step.seconds) * 1e3);
  (*row)["share_of_roofline"] = Rounded(least_s / step_s);
  (*row)["ops"] = std::move(ops);
}

}  // namespace nibble::bench
