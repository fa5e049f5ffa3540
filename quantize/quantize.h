// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Offline quantization: a full-precision model directory in, a quantized one out.
//
//   NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe("awq,clip,gptq"));
//   NIBBLE_ASSIGN_OR_RETURN(QuantizeReport report,
//                           QuantizeCheckpoint(source, output, {.recipe = recipe}, &pool,
//                           progress));
//
// Every linear layer of the decoder gets 4- or 8-bit codes and scales; embeddings, final norm and
// head are copied bit by bit. What is written is a compressed-tensors checkpoint
// (engine/model/compressed_tensors.h) with the source's tokenizer and templates, and
// quantize_report.json. Memory holds a few layers, not the model; the exceptions are
// self-generated calibration (the model has to be whole to write) and the comparison of
// perplexities (source and output, one after the other).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/calibration.h"
#include "quantize/recipe.h"
#include "quantize/report.h"

namespace nibble::quantize {

inline constexpr const char* kReportFile = "quantize_report.json";
// Progress counts layers in these.
inline constexpr int64_t kLayerUnits = 100;

struct QuantizeOptions {
  Scheme scheme = Scheme::kW4A8;
  // Input channels per scale; divides those of every linear layer. kChannelGroup: one scale per
  // output channel, the only one of kW8A8.
  int64_t group_size = 128;
  Recipe recipe;
  // Norm tweaking with this learning rate, in (0, 1]. Unset: none.
  std::optional<double> norm_tweak_rate;
  CalibrationOptions calibration;
  std::string eval_data;  // text whose perplexity is compared at the end; empty: none
  // Replaces the output folder when it holds a model (a config.json); any other folder with files
  // in it is left alone and refused.
  bool overwrite = false;
  bool restart = false;                        // discards what an unfinished run left
  int64_t max_shard_bytes = int64_t{5} << 30;  // of a file of tensors, at least 1
  Isa isa = Isa::kRef;

  bool needs_calibration() const { return !recipe.IsRtn() || norm_tweak_rate.has_value(); }
};
// INVALID_ARGUMENT with a line for each value out of range and each option that nothing would use.
absl::Status Validate(const QuantizeOptions& options);

enum class Phase { kLoading, kGenerating, kLayers, kWriting, kEvaluating };

struct QuantizeProgress {
  Phase phase = Phase::kLayers;
  int64_t done = 0;  // bytes, tokens, hundredths of layers, bytes, tokens
  int64_t total = 0;
  int64_t layer_idx = 0;  // kLayers
  int64_t num_layers = 0;
  std::string_view step;  // kLayers: what is being done to the layer
};
using ProgressCallback = std::function<void(const QuantizeProgress&)>;

// `progress` may be null; it is called from this thread. On any error, and when the process is
// killed, `output` is as it was before, and "OUTPUT.partial" beside it has the finished layers: the
// same call goes on after them and makes the same bytes (work_folder.h). Those bytes depend on
// source, options and instruction set, not on the number of threads.
absl::StatusOr<QuantizeReport> QuantizeCheckpoint(const std::string& source,
                                                  const std::string& output,
                                                  const QuantizeOptions& options, ThreadPool* pool,
                                                  const ProgressCallback& progress);

}  // namespace nibble::quantize
