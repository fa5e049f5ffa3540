// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A request body through every parser of the OpenAI API. What is accepted must be within limits.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/json.h"
#include "server/openai/api_error.h"
#include "server/openai/api_request.h"

namespace {

using nibble::server::ApiRequest;
using nibble::server::RequestLimits;

void CheckAccepted(const absl::StatusOr<ApiRequest>& request, const RequestLimits& limits) {
  if (!request.ok()) {
    // Error bodies must be JSON whatever the request held.
    if (!nibble::ParseJson(nibble::server::ErrorJson(request.status())).ok()) std::abort();
    return;
  }
  const auto& sampling = request->generate.sampling;
  if (sampling.stop.size() > static_cast<size_t>(limits.sampling.max_stop_strings)) std::abort();
  if (sampling.logprobs.value_or(0) > limits.sampling.max_logprobs) std::abort();
  if (!(sampling.temperature.value_or(1.0F) >= 0.0F)) std::abort();
  if (!(sampling.top_p.value_or(1.0F) > 0.0F)) std::abort();
  for (const int32_t id : sampling.stop_token_ids) {
    if (id < 0 || id >= limits.sampling.vocab_size) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  RequestLimits limits;
  limits.sampling.vocab_size = 32000;
  limits.sampling.max_model_len = 2048;
  const auto body = nibble::ParseJson(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!body.ok()) return 0;
  CheckAccepted(nibble::server::ParseChatRequest(*body, limits), limits);
  CheckAccepted(nibble::server::ParseCompletionRequest(*body, limits), limits);
  (void)nibble::server::ParseTokenizeRequest(*body, limits);
  (void)nibble::server::ParseDetokenizeRequest(*body, limits);
  return 0;
}
