// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/admission/sampling_json.h"

#include <cmath>

#include "fmt/format.h"

namespace nibble::server {
namespace {

// Values are noted before they are checked.
std::string Number(float value) { return std::isfinite(value) ? fmt::format("{}", value) : "null"; }

}  // namespace

std::string SamplingJson(const engine::SamplingParams& sampling, int64_t n, int32_t priority) {
  return fmt::format(
      "{{\"n\":{},\"max_tokens\":{},\"min_tokens\":{},\"temperature\":{},\"top_p\":{},\"top_k\":{},"
      "\"min_p\":{},\"repetition_penalty\":{},\"presence_penalty\":{},\"frequency_penalty\":{},"
      "\"seed\":{},\"num_stop\":{},\"num_logit_bias\":{},\"ignore_eos\":{},\"logprobs\":{},"
      "\"priority\":{}}}",
      n, sampling.max_tokens, sampling.min_tokens, Number(sampling.temperature),
      Number(sampling.top_p), sampling.top_k, Number(sampling.min_p),
      Number(sampling.repetition_penalty), Number(sampling.presence_penalty),
      Number(sampling.frequency_penalty),
      sampling.seed.has_value() ? std::to_string(*sampling.seed) : "null",
      sampling.stop.size() + sampling.stop_token_ids.size(), sampling.logit_bias.size(),
      sampling.ignore_eos, sampling.logprobs, priority);
}

}  // namespace nibble::server
