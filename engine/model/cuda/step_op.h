// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a step of CudaDecoderModel is made of, and how long each of it takes: for measurements.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace nibble::engine {

enum class StepOp {
  kEmbed,
  kNorm,  // with the residual addition and quantization
  kQkv,
  kRopeKv,  // RoPE, keys and values into the cache
  kAttention,
  kKeepRows,  // of a chunk, those that are sampled
  kQuantize,  // attention's output
  kO,
  kGateUp,
  kSwiGlu,  // with quantization
  kDown,
  kExperts,  // router, both grouped products and all between
  kHead,
  kSample,
};
inline constexpr int kNumStepOps = 14;

constexpr std::string_view ToString(StepOp op) {
  constexpr std::array<std::string_view, kNumStepOps> kNames = {
      "embed",     "norm+quantize", "qkv",  "rope+append", "attention",
      "keep rows", "quantize",      "o",    "gate_up",     "swiglu+quantize",
      "down",      "experts",       "head", "sample"};
  return kNames[static_cast<size_t>(op)];
}

struct StepOpTime {
  StepOp op = StepOp::kEmbed;
  int64_t calls = 0;     // in the step
  double seconds = 0.0;  // of all of them
  // Of layers with weights, else 0: what is read of them (of experts, those that the step's tokens
  // chose), and operations (2 a product).
  int64_t weight_bytes = 0;
  double operations = 0.0;
  bool int8 = false;  // products of int8
};

struct StepTime {
  double seconds = 0.0;  // of all launches as one graph, sampling among them
  std::vector<StepOpTime> ops;
};

}  // namespace nibble::engine
