// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Offline quantization: a full-precision model directory in, a W4A8 one out.
//
//   NIBBLE_ASSIGN_OR_RETURN(QuantizeReport report,
//                           QuantizeCheckpoint(source, output, {.group_size = 128}, &pool,
//                           progress));
//
// Every linear layer of the decoder gets 4-bit codes and group scales; embeddings, norms, biases
// and the head are copied bit by bit. What is written is a compressed-tensors checkpoint
// (engine/model/compressed_tensors.h) with the source's tokenizer and templates. Tensors pass
// through one at a time, large ones in slices of rows, so memory does not grow with the model.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"

namespace nibble::quantize {

enum class Scheme { kW4A8 };
enum class Method { kRtn };  // round to nearest, scales searched for the least squared error

// UNIMPLEMENTED, listing what is supported, for other names.
absl::StatusOr<Scheme> ParseScheme(std::string_view name);
absl::StatusOr<Method> ParseMethod(std::string_view name);

struct QuantizeOptions {
  Scheme scheme = Scheme::kW4A8;
  Method method = Method::kRtn;
  int64_t group_size = 128;  // divides the input channels of every linear layer; a multiple of 8
  // Replaces the output folder when it holds a model (a config.json); any other folder with files
  // in it is left alone and refused.
  bool overwrite = false;
  int64_t max_shard_bytes = int64_t{5} << 30;
};

struct ModuleReport {
  std::string name;  // "model.layers.0.mlp.up_proj"
  int64_t n = 0;
  int64_t k = 0;
  double relative_error = 0.0;   // ||W - Q|| / ||W||, Frobenius
  double bits_per_weight = 0.0;  // codes and scales as stored
};

struct LayerReport {
  int64_t layer_idx = 0;
  double relative_error = 0.0;  // of all its linear layers together
  double bits_per_weight = 0.0;
  std::vector<ModuleReport> modules;
};

struct QuantizeReport {
  std::vector<LayerReport> layers;
  double relative_error = 0.0;  // of all linear layers together
  double bits_per_weight = 0.0;
  int64_t source_bytes = 0;  // tensors of the source
  int64_t output_bytes = 0;  // tensors of the output
};

struct QuantizeProgress {
  int64_t done_bytes = 0;  // source bytes read so far
  int64_t total_bytes = 0;
  std::string_view tensor;  // about to be read; empty at the end
};
using ProgressCallback = std::function<void(const QuantizeProgress&)>;

// `progress` may be null; it is called from this thread. On any error, and when the process is
// killed, `output` is as it was before: the checkpoint is made in a folder beside it
// ("OUTPUT.partial-XXXXXX", removed on errors) and renamed at the end.
absl::StatusOr<QuantizeReport> QuantizeCheckpoint(const std::string& source,
                                                  const std::string& output,
                                                  const QuantizeOptions& options, ThreadPool* pool,
                                                  const ProgressCallback& progress);

}  // namespace nibble::quantize
