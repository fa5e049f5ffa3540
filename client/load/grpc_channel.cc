// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/grpc_channel.h"

#include <algorithm>

#include "fmt/core.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_certificate_verifier.h"
#include "grpcpp/security/tls_credentials_options.h"

#include "base/mapped_file.h"
#include "client/http/printable.h"

namespace nibble::client {
namespace {

constexpr size_t kMaxPemBytes = 1 << 20;

absl::StatusOr<std::string> ReadPem(const char* option, const std::string& path) {
  if (path.empty()) return std::string();
  absl::StatusOr<std::string> text = ReadFile(path, kMaxPemBytes);
  return text.ok() ? text : Annotate(text.status(), option);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const LoadOptions& options) {
  const ClientSecurity& security = options.security;
  const bool tls =
      options.grpc_tls || security.insecure || !security.ca_cert.empty() || !security.cert.empty();
  if (!tls) return grpc::InsecureChannelCredentials();
  NIBBLE_ASSIGN_OR_RETURN(const std::string ca, ReadPem("--ca-cert", security.ca_cert));
  NIBBLE_ASSIGN_OR_RETURN(const std::string cert, ReadPem("--cert", security.cert));
  NIBBLE_ASSIGN_OR_RETURN(const std::string key, ReadPem("--key", security.key));
  if (!security.insecure) {
    return grpc::SslCredentials(
        {.pem_root_certs = ca, .pem_private_key = key, .pem_cert_chain = cert});
  }
  grpc::experimental::TlsChannelCredentialsOptions tls_options;
  tls_options.set_verify_server_certs(false);
  tls_options.set_check_call_host(false);
  tls_options.set_certificate_verifier(
      std::make_shared<grpc::experimental::NoOpCertificateVerifier>());
  if (!cert.empty()) {
    tls_options.set_certificate_provider(
        std::make_shared<grpc::experimental::StaticDataCertificateProvider>(
            std::vector<grpc::experimental::IdentityKeyCertPair>{{key, cert}}));
    tls_options.watch_identity_key_cert_pairs();
  }
  return grpc::experimental::TlsCredentials(tls_options);
}

const char* NameOf(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case grpc::StatusCode::NOT_FOUND:
      return "NOT_FOUND";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "RESOURCE_EXHAUSTED";
    case grpc::StatusCode::UNAVAILABLE:
      return "UNAVAILABLE";
    case grpc::StatusCode::UNAUTHENTICATED:
      return "UNAUTHENTICATED";
    case grpc::StatusCode::PERMISSION_DENIED:
      return "PERMISSION_DENIED";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "DEADLINE_EXCEEDED";
    case grpc::StatusCode::CANCELLED:
      return "CANCELLED";
    default:
      return "gRPC status";
  }
}

}  // namespace

absl::StatusOr<std::vector<std::shared_ptr<grpc::Channel>>> MakeChannels(const LoadOptions& options,
                                                                         int count) {
  NIBBLE_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                          MakeCredentials(options));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // channels would share a connection
  arguments.SetMaxReceiveMessageSize(64 << 20);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < count; ++i) {
    channels.push_back(grpc::CreateCustomChannel(options.grpc, credentials, arguments));
  }
  return channels;
}

std::vector<std::pair<std::string, std::string>> MakeMetadata(const LoadOptions& options) {
  std::vector<std::pair<std::string, std::string>> metadata = ParsePairs(options.headers);
  for (auto& [name, value] : metadata) {
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  }
  if (!options.security.api_key.empty()) {
    metadata.emplace_back("authorization", "Bearer " + options.security.api_key);
  }
  return metadata;
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(
      static_cast<absl::StatusCode>(status.error_code()),
      fmt::format("{}: {}", NameOf(status.error_code()), PrintableMessage(status.error_message())));
}

}  // namespace nibble::client
