// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A rank's process: engine_test_rank RANK SIZE MODEL_DIR --control-fd FD

#include <cstdlib>
#include <string>

#include "base/thread_pool.h"
#include "comm/ranks/frame_channel.h"
#include "engine/exec/rank_server.h"

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  nibble::ThreadPool pool(1);
  nibble::engine::RankServerOptions options{.model_dir = argv[3], .block_size = 4};
  options.load.place = {.rank = std::atoi(argv[1]), .size = std::atoi(argv[2])};
  options.limits = {.max_tokens = 32, .max_positions = 64, .max_samples = 8};
  const auto channel = nibble::comm::MakeSocketChannel(std::atoi(argv[5]));
  return RunRankServer(channel.get(), options, &pool).ok() ? 0 : 1;
}
