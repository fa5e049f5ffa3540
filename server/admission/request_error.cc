// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/admission/request_error.h"

#include "absl/strings/cord.h"

namespace nibble::server {
namespace {

constexpr char kParamPayload[] = "nibble.param";

}  // namespace

absl::Status WithParam(absl::Status status, std::string_view param) {
  if (!status.ok() && !status.GetPayload(kParamPayload).has_value()) {
    status.SetPayload(kParamPayload, absl::Cord(absl::string_view(param.data(), param.size())));
  }
  return status;
}

std::string ParamOf(const absl::Status& status) {
  const auto param = status.GetPayload(kParamPayload);
  return param.has_value() ? std::string(*param) : std::string();
}

}  // namespace nibble::server
