// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Where the time of a step on a device goes, as members of a benchmark's row.
#pragma once

#include "nlohmann/json_fwd.hpp"

#include "bench/device_probe.h"
#include "bench/roofline.h"

namespace nibble::bench {

// Of attention in a step, which no weight tells. Sliding windows are left out: models that have
// them do less.
struct AttentionWork {
  double cache_bytes = 0.0;  // read
  double ops = 0.0;          // of 16 bits, 2 a product
};

// Adds to `row`, of a step that took the host `step_s`:
//   device_ms          all launches as one graph
//   gaps_ms            of that, what the sum of the ops leaves; below zero where launches of one
//                      kind follow each other worse than mixed
//   host_ms            what device_ms leaves of the step: arrays, launching, waiting, tokens
//   share_of_roofline  the ops' rooflines over the step; of an op the longer of reading its weights
//                      (keys and values) and of its products at their peak
//   ops                of each kind calls, us, share of the step, and of the peaks
void AddStepOps(const DeviceStep& step, const AttentionWork& attention, double step_s,
                const DevicePeaks& peaks, nlohmann::ordered_json* row);

}  // namespace nibble::bench
