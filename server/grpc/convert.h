// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Between the protocol's messages and native types. Range checks of values belong to the native
// path.
#pragma once

#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"

#include "base/status.h"
#include "engine/tokenizer/tokenizer.h"
#include "nibble/v1/nibble.pb.h"
#include "server/admission/generation_service.h"

namespace nibble::server {

// INVALID_ARGUMENT for what the messages can say but no request can mean (no prompt, n < 0).
absl::StatusOr<GenerateRequest> ToNative(const v1::GenerateRequest& message);
absl::StatusOr<GenerateRequest> ToNative(const v1::ChatRequest& message);

// Appends `output` to `message`, which holds earlier, unsent deltas of the same choice. REQUIRES a
// finish reason of none, kStop or kLength: the others end a stream with a status.
void AppendDelta(engine::RequestOutput output, const engine::Tokenizer& tokenizer,
                 v1::GenerateResponse* message);

// Long messages are cut, so that they fit into a client's header limit.
grpc::Status ToGrpcStatus(const absl::Status& status);

// Trailing metadata "retry-after-ms" for the errors that go away by themselves.
void AddRetryHint(const absl::Status& status, grpc::CallbackServerContext* context);

}  // namespace nibble::server
