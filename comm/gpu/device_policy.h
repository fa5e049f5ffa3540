// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which algorithm and codec a message takes between devices that reach each other's memory.
#pragma once

#include <cstdint>
#include <functional>

#include "base/status.h"
#include "comm/all_reduce.h"
#include "comm/communicator.h"

namespace nibble::comm {

// The codecs of the host's policy, size by size; its algorithms are those of slower links, so
// one-shot is what an estimate of the devices' says.
AllReducePolicy UnmeasuredDevicePolicy(const AllReducePolicy& host_policy, int num_ranks);

struct MeasureDeviceOptions {
  CodecDesc codec;        // group size and options of the candidates
  int64_t min_bytes = 0;  // of messages as bf16, at least 1 KiB
  int64_t max_bytes = 0;
  double budget_seconds = 4;
};
// Seconds that one all-reduce of so many bytes as bf16 takes by a choice; all ranks are asked for
// the same ones in the same order, each when the one before it is over on all of them. It exchanges
// nothing by way of the host: its errors are agreed on where it returns.
using TimeAllReduce =
    std::function<absl::StatusOr<double>(const AllReduceChoice& choice, int64_t message_bytes)>;
// By comm/choose_policy.h's rule, of rank 0's times: every rank runs every candidate at sizes that
// double while there is time. (Its search is not for devices: it gives up at small sizes what is
// slow there, as all codecs are beside a link of this latency.) An error of one rank's is returned
// on all of them. REQUIRES min_bytes <= max_bytes.
absl::StatusOr<AllReducePolicy> MeasureDevicePolicy(const MeasureDeviceOptions& options,
                                                    Communicator* host, const TimeAllReduce& time);

}  // namespace nibble::comm
