// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One streaming call: takes deltas from the engine thread, writes them to the client one message at
// a time.
#pragma once

#include <cstdint>
#include <memory>

#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"

#include "nibble/v1/nibble.pb.h"
#include "server/admission/generation_service.h"

namespace nibble::server {

// Submits `request` and returns the reactor of its call (which deletes itself when the call is
// done). An error before admission finishes the call with that status; RESOURCE_EXHAUSTED and
// UNAVAILABLE carry "retry-after-ms".
grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerationStream(
    grpc::CallbackServerContext* context, GenerationService* service,
    absl::StatusOr<GenerateRequest> request, int64_t max_pending_bytes);

}  // namespace nibble::server
