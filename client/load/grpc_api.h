// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <memory>

#include "base/status.h"
#include "client/load/load_options.h"
#include "client/load/server_api.h"

namespace nibble::client {

// nibble's gRPC API at options.grpc: Generate, and Chat for the backend openai-chat. extra_body is
// JSON of nibble.v1.SamplingParams.
absl::StatusOr<std::unique_ptr<ServerApi>> MakeGrpcApi(const LoadOptions& options);

}  // namespace nibble::client
