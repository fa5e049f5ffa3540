// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Perplexity of a text on a model. Windows of `context` ids start every `stride` ids; each scores
// the ids that no earlier window scored, except an id with none before it in the window (the very
// first id; with stride == context, the first of every window). The last window is the first that
// reaches the end.
//   perplexity = exp(mean negative log likelihood)
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/communicator.h"
#include "comm/stage_link.h"
#include "engine/model/model.h"

namespace nibble::engine {

struct PerplexityOptions {
  int64_t context = 512;  // ids of a window, 2..max_position_embeddings
  int64_t stride = 256;   // ids between window starts, 1..context
  // Called after every chunk with ids scored and to be scored, from the calling thread. May be
  // null.
  std::function<void(int64_t, int64_t)> progress;
};

struct PerplexityResult {
  int64_t num_tokens = 0;  // the ids given
  int64_t num_scored = 0;
  double mean_nll = 0.0;  // nats per scored id; NaN or infinite when the model's logits are
  double perplexity = 0.0;
};

// `ids` (two or more) usually begin with the beginning-of-sequence token. Windows are computed in
// chunks, so memory does not grow with the text. INVALID_ARGUMENT for options or ids out of range,
// RESOURCE_EXHAUSTED when memory runs out. A rank that has no logits runs the same steps and scores
// nothing.
absl::StatusOr<PerplexityResult> ComputePerplexity(Model* model, std::span<const int32_t> ids,
                                                   const PerplexityOptions& options,
                                                   ThreadPool* pool);

// A share of a model, what joins it to the others, and what computes it.
struct PerplexityRank {
  Model* model = nullptr;
  comm::Communicator* communicator = nullptr;  // of its stage; may be null with one rank
  ThreadPool* pool = nullptr;
  comm::StageLink* link = nullptr;  // null with one stage
};

// The same on `ranks`, all of a model's: threads of this process, of which the calling one is the
// rank that has logits. Stages compute different chunks at a time. When a rank fails, all end, and
// its error is returned. INVALID_ARGUMENT unless one rank, and no more, has logits.
absl::StatusOr<PerplexityResult> ComputePerplexity(std::span<const PerplexityRank> ranks,
                                                   std::span<const int32_t> ids,
                                                   const PerplexityOptions& options);

}  // namespace nibble::engine
