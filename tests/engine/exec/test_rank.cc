// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A rank's process: engine_test_rank RANK SIZE STAGES MODEL_DIR --control-fd FD, with rank and size
// of all stages.

#include <cstdlib>
#include <string>

#include "base/thread_pool.h"
#include "comm/ranks/frame_channel.h"
#include "engine/exec/rank_server.h"

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const int rank = std::atoi(argv[1]);
  const int num_stages = std::atoi(argv[3]);
  const int stage_size = std::atoi(argv[2]) / num_stages;
  nibble::ThreadPool pool(1);
  nibble::engine::RankServerOptions options{.model_dir = argv[4], .block_size = 4};
  options.load.place = {.rank = rank % stage_size,
                        .size = stage_size,
                        .stage = rank / stage_size,
                        .num_stages = num_stages};
  options.limits = {.max_tokens = 32, .max_positions = 64, .max_samples = 8};
  const auto channel = nibble::comm::MakeSocketChannel(std::atoi(argv[6]));
  return RunRankServer(channel.get(), options, &pool).ok() ? 0 : 1;
}
