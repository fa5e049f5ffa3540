// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/status_map.h"

#include <array>

namespace nibble::server {
namespace {

constexpr std::string_view kInvalidRequest = "invalid_request_error";
constexpr std::string_view kServerError = "server_error";

struct Row {
  absl::StatusCode code;
  StatusMapping mapping;
};

// gRPC and Abseil share their numbers, so grpc_code repeats the row's own; it is written out
// because it is part of the API.
constexpr std::array<Row, 17> kTable = {{
    {absl::StatusCode::kOk, {200, 0, "", "", 0}},
    // 499: the client is gone and reads no answer; the number is for logs and metrics.
    {absl::StatusCode::kCancelled, {499, 1, "cancelled_error", "request_cancelled", 0}},
    {absl::StatusCode::kUnknown, {500, 2, kServerError, "", 0}},
    {absl::StatusCode::kInvalidArgument, {400, 3, kInvalidRequest, "", 0}},
    {absl::StatusCode::kDeadlineExceeded, {504, 4, kServerError, "deadline_exceeded", 0}},
    // The only thing a client can name and miss is a model.
    {absl::StatusCode::kNotFound, {404, 5, kInvalidRequest, "model_not_found", 0}},
    {absl::StatusCode::kAlreadyExists, {409, 6, kInvalidRequest, "", 0}},
    {absl::StatusCode::kPermissionDenied, {403, 7, "permission_error", "", 0}},
    // The queue is full: it drains within steps, so a second is a useful wait.
    {absl::StatusCode::kResourceExhausted, {429, 8, "rate_limit_error", "queue_full", 1}},
    {absl::StatusCode::kFailedPrecondition, {400, 9, kInvalidRequest, "", 0}},
    {absl::StatusCode::kAborted, {409, 10, kServerError, "aborted", 0}},
    {absl::StatusCode::kOutOfRange, {400, 11, kInvalidRequest, "", 0}},
    {absl::StatusCode::kUnimplemented, {501, 12, kInvalidRequest, "unsupported", 0}},
    {absl::StatusCode::kInternal, {500, 13, kServerError, "", 0}},
    // Draining or failed: another replica, or this one after a restart, can answer.
    {absl::StatusCode::kUnavailable, {503, 14, "service_unavailable_error", "unavailable", 5}},
    {absl::StatusCode::kDataLoss, {500, 15, kServerError, "", 0}},
    {absl::StatusCode::kUnauthenticated, {401, 16, "authentication_error", "invalid_api_key", 0}},
}};

}  // namespace

const StatusMapping& MapStatus(absl::StatusCode code) {
  for (const Row& row : kTable) {
    if (row.code == code) return row.mapping;
  }
  return MapStatus(absl::StatusCode::kUnknown);
}

}  // namespace nibble::server
