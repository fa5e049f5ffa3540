// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is asked: prompts and how many tokens each is answered with. The same for the same seed.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "client/load/request.h"
#include "client/load/text_codec.h"

namespace nibble::client {

struct DatasetOptions {
  std::string name = "random";  // random, prefix_repetition, custom, timed-trace
  std::string path;             // JSONL, of custom and timed-trace
  int64_t num_prompts = 1000;   // 0: all of a file
  uint64_t seed = 0;
  bool disable_shuffle = false;  // of prefix_repetition and custom
  bool no_oversample = false;    // a file with fewer prompts is not gone through again
  // Of random: lengths are drawn from length * (1 - ratio) to length * (1 + ratio).
  int64_t random_input_len = 1024;
  int64_t random_output_len = 128;
  double random_range_ratio = 0;
  int64_t random_prefix_len = 0;  // tokens that all prompts begin with, besides
  // Of prefix_repetition: prompts are one of some prefixes and a suffix of their own.
  int64_t prefix_len = 256;
  int64_t suffix_len = 256;
  int64_t num_prefixes = 10;
  int64_t prefix_output_len = 128;
  int64_t custom_output_len = 256;  // where a line of the file says nothing

  // One line for each violation, naming option, value and limit.
  void Validate(std::vector<std::string>* violations) const;
  // Of prompts that are made by these options; 0 for those of a file.
  double mean_prompt_tokens() const;
  bool is_trace() const { return name == "timed-trace"; }
  bool has_file() const { return name == "custom" || is_trace(); }
};

// Requests of a run, and others (as many as asked for) of the same kind to warm up with: no prompt
// of those is measured, unless a file has too few.
struct Dataset {
  std::vector<LoadRequest> requests;
  std::vector<LoadRequest> warmups;
  bool warmups_are_measured = false;  // some of them
};

struct DatasetHooks {
  const std::atomic<bool>* interrupted = nullptr;  // may be null
  // May be empty; told of texts, each of which takes a few questions to `codec`.
  std::function<void(int64_t done, int64_t total)> progress;
};

// `as_text`: prompts are texts, whose tokens are those of `codec` (a chat's template adds more).
// `codec` is asked for random prompts alone. Errors name the file's line; CANCELLED when
// interrupted.
absl::StatusOr<Dataset> MakeDataset(const DatasetOptions& options, int64_t num_warmups,
                                    bool as_text, TextCodec* codec, const DatasetHooks& hooks = {});

}  // namespace nibble::client
