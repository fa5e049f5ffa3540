// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One streaming call: takes deltas from the engine thread, writes them to the client one message at
// a time.
#pragma once

#include <cstdint>

#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"

#include "nibble/v1/nibble.pb.h"
#include "server/admission/generation_service.h"
#include "server/grpc/call_log.h"

namespace nibble::server {

// Submits `request` and returns the reactor of its call, which frees itself. An error before
// admission, also the gate's in `service` and one in `request`, ends the call with that status;
// RESOURCE_EXHAUSTED and UNAVAILABLE carry "retry-after-ms". A client that leaves more than
// `max_pending_bytes` unread (in memory, over all choices, beside one message being sent) is cut
// off. `call` is told how it ends.
grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerationStream(
    grpc::CallbackServerContext* context, absl::StatusOr<GenerationService*> service,
    absl::StatusOr<GenerateRequest> request, int64_t max_pending_bytes, LoggedCall call);

}  // namespace nibble::server
