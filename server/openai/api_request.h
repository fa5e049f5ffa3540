// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Request bodies of the OpenAI API in native types. Pure functions of the JSON: the fuzz target's
// entry. Errors are INVALID_ARGUMENT and name the field (see ParamOf in api_error.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/status.h"
#include "engine/request/sampling_params.h"
#include "server/admission/generation_service.h"

namespace nibble::server {

struct RequestLimits {
  engine::SamplingLimits sampling;
  ServiceLimits service;
};

struct ApiRequest {
  GenerateRequest generate;
  bool chat = false;
  bool stream = false;
  bool include_usage = false;
  bool logprobs = false;  // asked for in the answer
};

absl::StatusOr<ApiRequest> ParseChatRequest(const nlohmann::json& body,
                                            const RequestLimits& limits);
absl::StatusOr<ApiRequest> ParseCompletionRequest(const nlohmann::json& body,
                                                  const RequestLimits& limits);

struct TokenizeRequest {
  std::string model;
  // One of the two:
  std::optional<std::string> prompt;
  std::optional<GenerateRequest::Chat> chat;
  bool add_special_tokens = true;
  bool return_token_strs = false;
};
absl::StatusOr<TokenizeRequest> ParseTokenizeRequest(const nlohmann::json& body,
                                                     const RequestLimits& limits);

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};
absl::StatusOr<DetokenizeRequest> ParseDetokenizeRequest(const nlohmann::json& body,
                                                         const RequestLimits& limits);

}  // namespace nibble::server
