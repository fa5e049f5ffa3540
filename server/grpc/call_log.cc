// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/call_log.h"

#include <array>
#include <chrono>
#include <string_view>
#include <utility>

#include "nibble/v1/nibble.grpc.pb.h"

namespace nibble::server {
namespace {

// gRPC writes "ipv4:127.0.0.1:5000" and "ipv6:%5B::1%5D:5000"; the log has addresses as HTTP's.
std::string AddressOf(std::string peer) {
  if (const size_t colon = peer.find(':'); peer.substr(0, 3) == "ipv" && colon == 4) {
    peer.erase(0, colon + 1);
  }
  for (const auto& [escaped, character] : {std::pair("%5B", "["), std::pair("%5D", "]")}) {
    if (const size_t at = peer.find(escaped); at != std::string::npos) {
      peer.replace(at, 3, character);
    }
  }
  return peer;
}

}  // namespace

std::string_view NameOf(grpc::StatusCode code) {
  constexpr std::array<std::string_view, 17> kNames = {"OK",
                                                       "CANCELLED",
                                                       "UNKNOWN",
                                                       "INVALID_ARGUMENT",
                                                       "DEADLINE_EXCEEDED",
                                                       "NOT_FOUND",
                                                       "ALREADY_EXISTS",
                                                       "PERMISSION_DENIED",
                                                       "RESOURCE_EXHAUSTED",
                                                       "FAILED_PRECONDITION",
                                                       "ABORTED",
                                                       "OUT_OF_RANGE",
                                                       "UNIMPLEMENTED",
                                                       "INTERNAL",
                                                       "UNAVAILABLE",
                                                       "DATA_LOSS",
                                                       "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < kNames.size() ? kNames[index] : "UNKNOWN";
}

LoggedCall::LoggedCall(std::string id, std::string method, std::string peer,
                       std::shared_ptr<RequestLog> log, const GrpcObserver* observer)
    : id_(std::move(id)),
      method_(std::move(method)),
      peer_(std::move(peer)),
      log_(std::move(log)),
      observer_(observer) {}

void LoggedCall::End(grpc::StatusCode code) {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - trace_->begin();
  if (*observer_ != nullptr) {
    const std::string_view path = method_;
    (*observer_)(path.substr(path.rfind('/') + 1), NameOf(code), elapsed.count());
  }
  if (log_ == nullptr) return;
  log_->Add({.protocol = "grpc",
             .request_id = id_,
             .route = method_,
             .status = static_cast<int>(code),
             .peer = AddressOf(peer_),
             .e2e_seconds = elapsed.count(),
             .facts = trace_->facts()});
}

LoggedCall CallLog::Begin(grpc::CallbackServerContext* context, std::string_view method) {
  const auto& metadata = context->client_metadata();
  const auto given =
      metadata.find(grpc::string_ref(kRequestIdHeader.data(), kRequestIdHeader.size()));
  std::string id = ids_.Choose(given == metadata.end()
                                   ? std::string_view()
                                   : std::string_view(given->second.data(), given->second.size()));
  context->AddInitialMetadata(std::string(kRequestIdHeader), id);
  return {std::move(id), fmt::format("/{}/{}", v1::Nibble::service_full_name(), method),
          log_ == nullptr ? "" : context->peer(), log_, &observer_};
}

}  // namespace nibble::server
