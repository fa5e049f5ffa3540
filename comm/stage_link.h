// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The hand-off between neighbouring pipeline stages: rank r of a stage sends activations to rank r
// of the next. Messages arrive in order and uncompressed: their bits are the sender's.
//
// Send copies and returns, so that a stage computes the next batch while its last one travels; it
// waits only when kMaxUnsent messages have not left yet. Receive waits for the previous stage.
// Every wait ends at the link's timeout. After an error the link is broken: all later calls return
// an error at once, and the neighbours run into theirs. One thread calls; Abort may come from any.
// What has not left when a link is destroyed is dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace nibble::comm {

class StageLink {
 public:
  static constexpr int kMaxUnsent = 2;

  virtual ~StageLink() = default;

  // To the next stage. REQUIRES that there is one.
  virtual absl::Status Send(const float* data, int64_t num_values) = 0;
  // From the previous stage: the message must have as many values (DATA_LOSS naming both sizes).
  // REQUIRES that there is one.
  virtual absl::Status Receive(float* data, int64_t num_values) = 0;

  virtual void Abort(const std::string& reason) = 0;
};

// The links of ranks that are threads of this process, over private memory, by world rank
// (stage * ranks_per_stage + rank): for tests and evaluation.
absl::StatusOr<std::vector<std::unique_ptr<StageLink>>> MakeThreadStageLinks(int num_stages,
                                                                             int ranks_per_stage);

}  // namespace nibble::comm
