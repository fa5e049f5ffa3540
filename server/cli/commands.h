// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The commands of the nibble binary. Each takes its options, writes results to standard output and
// messages to standard error, and returns the process's exit status: 0, or 1 after printing what
// went wrong and what to do.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "client/http/client_security.h"
#include "server/config.h"

namespace nibble::cli {

int RunServe(const server::ServeConfig& config);

// A rank of a group; its server passes these.
struct RankOptions {
  server::ModelOptions model;
  int tensor_parallel_size = 1;
  int pipeline_parallel_size = 1;
  int expert_parallel_size = 1;  // as chosen
  std::string expert_layout;     // file with the JSON of the one that all ranks have; may be empty
  bool check_routing = false;
  int rank = 0;  // of all stages
  int device_index = 0;
  int control_fd = -1;  // socket to the server
  int64_t block_size = 16;
  int64_t max_num_batched_tokens = 2048;
  int64_t max_num_seqs = 64;
  int64_t max_model_len = 2048;
  std::string model_fingerprint;  // of the model that the server was started with
  // StepNeighbors'
  int host_ranks = 1;
  int64_t kv_cache_memory_bytes = 0;
  int64_t min_batched_tokens = 1;
};
int RunRank(const RankOptions& options);

struct PerplexityOptions {
  server::ModelOptions model;
  std::string data;              // text file
  int64_t context = 512;         // ids per window
  int64_t stride = 256;          // ids between windows
  int64_t limit = 0;             // score the first `limit` ids only; 0: all
  int tensor_parallel_size = 1;  // ranks, as threads of this process
  int pipeline_parallel_size = 1;
  server::ExpertOptions experts;  // how they are shared
  server::AllReduceFlags all_reduce = {.all_reduce = "none"};
  bool json = false;
};
int RunPerplexity(const PerplexityOptions& options);

struct InspectOptions {
  std::string model;  // may be empty with `experts`
  bool json = false;
  bool tensors = false;  // list every tensor
  // A file of --record-expert-load, or the http[s]:// address of a server: shows what is there
  // instead of a model.
  std::string experts;
  client::ClientSecurity security;  // of that server
  int expert_parallel_size = 0;     // whose balance is shown; 0: several
  int num_redundant_experts = 0;    // copies for a placement that is shown beside
};
int RunInspect(const InspectOptions& options);

struct QuantizeOptions {
  std::string source;
  std::string output;
  std::string scheme = "w4a8";
  std::string method = "rtn";
  std::string group_size;  // "128", "channel"; empty: the scheme's default
  bool norm_tweaking = false;
  double norm_tweaking_lr = 1e-5;
  std::string calibration_data;  // file or "self-generated"; empty: as the method needs
  int64_t calibration_samples = 128;
  int64_t calibration_length = 512;
  uint64_t seed = 0;
  std::string eval_data;
  int threads = 0;
  bool overwrite = false;
  bool restart = false;
};
int RunQuantize(const QuantizeOptions& options);

// Writes to standard error. A reader that is gone is no error (fmt::print throws then).
void PrintMessage(const std::string& text);

// Prints "nibble: error: ..." with one line per violation; returns 1.
int Fail(const absl::Status& status);

// Parses the command line and runs the command. 2 for a command line that is wrong.
int Main(int argc, char** argv);

}  // namespace nibble::cli
