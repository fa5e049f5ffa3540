// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The inside of a rank's process: one share of the model, driven over a channel (rank_protocol.h).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/ranks/frame_channel.h"
#include "engine/model/model.h"

namespace nibble::engine {

struct RankServerOptions {
  std::string model_dir;
  // load.place says which rank this is, of which stage; load.expert_layout which experts it has.
  LoadOptions load;
  int64_t block_size = 16;
  StepLimits limits;
  // Takes the memory of the largest step, for whoever can say more of its failing than
  // Model::Reserve, which is the default.
  std::function<absl::Status(Model* model, const StepLimits& limits, ThreadPool* pool)> reserve;
};

// Loads, tells the driver, and does what it says until it goes away or says kExit. One thread reads
// the channel and answers pings, so that a rank in a long step is not taken for dead; the calling
// thread computes. OK after kExit; UNAVAILABLE when the driver went away; the error of loading
// otherwise, which the driver was told.
absl::Status RunRankServer(comm::FrameChannel* channel, const RankServerOptions& options,
                           ThreadPool* pool);

}  // namespace nibble::engine
