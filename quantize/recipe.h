// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a model is quantized to, and how: the names of the command line and what they stand for.
//
//   scheme   weights      activations          on disk
//   w4a8     4 bit        8 bit, per token     pack-quantized
//   w4a16    4 bit        16 bit               pack-quantized, no input_activations
//   w8a8     8 bit        8 bit, per token     int-quantized, one scale per output channel
//
// A recipe is at most one equalization, then clipping or not, then one rounding:
//
//   rtn        round to nearest, scales searched for the least squared error of the weights
//   gptq       GPTQ (arXiv:2210.17323) within the scales of rtn
//   awq        AWQ-style scaling search (arXiv:2306.00978), clipping, round to nearest
//   odyssey    clipping, GPTQ (OdysseyLLM, arXiv:2311.09550)
//   fptq       logarithmic activation equalization (arXiv:2308.15987) of the sites where it lowers
//              the error, not by the paper's ranges; GPTQ
//   a list     steps by name, "awq,gptq" or "fptq,clip,gptq": one of awq (the scaling alone), fptq;
//              clip; one of rtn, gptq
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

enum class Scheme { kW4A8, kW8A8, kW4A16 };
std::string_view ToString(Scheme scheme);
// UNIMPLEMENTED, listing what is supported, for other names.
absl::StatusOr<Scheme> ParseScheme(std::string_view name);
int WeightBits(Scheme scheme);
int ActivationBits(Scheme scheme);

// One scale for all input channels of an output channel.
inline constexpr int64_t kChannelGroup = 0;
inline constexpr int64_t kMaxGroupSize = 1 << 16;
// "128", "channel" or "-1" (vLLM's word for it); "" is the scheme's default. INVALID_ARGUMENT for
// what is not a multiple of 8 in 8..65536, and for groups of a scheme that has none.
absl::StatusOr<int64_t> ParseGroupSize(std::string_view text, Scheme scheme);
std::string GroupSizeName(int64_t group_size);

// For a matrix of `k` input channels.
WeightScheme SchemeOf(Scheme scheme, int64_t group_size, int64_t k);

enum class Equalization { kNone, kAwq, kFptq };
enum class Rounding { kRtn, kGptq };

struct Recipe {
  Equalization equalization = Equalization::kNone;
  bool clip = false;
  Rounding rounding = Rounding::kRtn;

  bool operator==(const Recipe&) const = default;
  bool IsRtn() const { return *this == Recipe(); }
};

// A recipe by name, or a list of steps. UNIMPLEMENTED for an unknown name, listing those there are;
// INVALID_ARGUMENT for steps that exclude each other or are out of order, naming both.
absl::StatusOr<Recipe> ParseRecipe(std::string_view text);
// The steps in full: "awq,clip,rtn".
std::string ToString(const Recipe& recipe);

}  // namespace nibble::quantize
