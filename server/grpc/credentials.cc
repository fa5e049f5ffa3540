// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/credentials.h"

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "grpc/grpc.h"
#include "grpc/grpc_security.h"
#include "nibble/v1/nibble.grpc.pb.h"
#include "server/auth/access.h"
#include "server/request_log/request_id.h"

namespace nibble::server {
namespace {

std::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

// gRPC asks for certificates whenever somebody connects.
struct CertificateFetcher {
  std::shared_ptr<TlsSource> source;
  std::atomic<uint64_t> given{0};  // generation that gRPC has

  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    auto* const fetcher = static_cast<CertificateFetcher*>(self);
    const TlsSource::Current current = fetcher->source->current();
    if (fetcher->given.load() == current.generation) {
      return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    }
    const TlsMaterial& material = *current.material;
    const grpc_ssl_pem_key_cert_pair pair = {.private_key = material.private_key.c_str(),
                                             .cert_chain = material.cert_chain.c_str()};
    // gRPC insists on some authority here, also where nobody is asked for a certificate.
    const std::string& authority = material.ca.empty() ? material.cert_chain : material.ca;
    *config = grpc_ssl_server_certificate_config_create(authority.c_str(), &pair, 1);
    if (*config == nullptr) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_FAIL;  // asked again
    fetcher->given.store(current.generation);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }
};

grpc_ssl_client_certificate_request_type RequestTypeOf(ClientCertificates clients) {
  switch (clients) {
    case ClientCertificates::kNone:
      return GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
    case ClientCertificates::kOptional:
      return GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY;
    case ClientCertificates::kRequired:
      return GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  return GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
}

// Of a client's path: its label, of which clients cannot make new ones.
std::string_view MethodOf(std::string_view path) {
  const google::protobuf::ServiceDescriptor* const service =
      v1::GenerateRequest::descriptor()->file()->FindServiceByName("Nibble");
  const std::string_view prefix = v1::Nibble::service_full_name();
  if (service == nullptr || path.size() < prefix.size() + 2 ||
      path.substr(1, prefix.size()) != prefix || path[prefix.size() + 1] != '/') {
    return "other";
  }
  const auto* const method = service->FindMethodByName(std::string(path.substr(prefix.size() + 2)));
  return method == nullptr ? std::string_view("other") : std::string_view(method->name());
}

// Runs before a call is dispatched, for every path.
struct KeyCheck {
  std::shared_ptr<const ApiKeys> keys;
  std::shared_ptr<RequestLog> log;
  GrpcObserver observer;
  RequestIds ids;

  static void Process(void* self, grpc_auth_context*, const grpc_metadata* metadata, size_t size,
                      grpc_process_auth_metadata_done_cb done, void* user_data) {
    const auto begin = std::chrono::steady_clock::now();
    auto* const check = static_cast<KeyCheck*>(self);
    Presented presented;
    std::vector<grpc_metadata> consumed;
    std::string_view path;
    std::string_view id;
    for (size_t i = 0; i < size; ++i) {
      const std::string_view name = View(metadata[i].key);
      if (name == ":path") path = View(metadata[i].value);
      if (name == kRequestIdHeader) id = View(metadata[i].value);
      if (name != "authorization") continue;
      presented.authorization.push_back(View(metadata[i].value));
      consumed.push_back(metadata[i]);  // no method needs to see it
    }
    constexpr std::string_view kHealth = "/grpc.health.v1.Health/";
    const absl::Status status = path.substr(0, kHealth.size()) == kHealth
                                    ? absl::OkStatus()
                                    : CheckAccess(*check->keys, presented);
    if (!status.ok()) {
      check->Log(path, id, status);
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
      if (check->observer) {
        check->observer(MethodOf(path), NameOf(static_cast<grpc::StatusCode>(status.code())),
                        elapsed.count());
      }
    }
    done(user_data, consumed.data(), consumed.size(), nullptr, 0,
         static_cast<grpc_status_code>(status.code()), std::string(status.message()).c_str());
  }

  void Log(std::string_view path, std::string_view id, const absl::Status& status) {
    if (log == nullptr) return;
    constexpr size_t kMaxPathBytes = 256;  // a client's bytes
    log->Add({.protocol = "grpc",
              .request_id = ids.Choose(id),
              .route = std::string(path.substr(0, kMaxPathBytes)),
              .status = static_cast<int>(status.code())});
  }
};

// gRPC's own classes take certificates once, or check no keys without TLS; below them is one
// function for all of it.
class Credentials final : public grpc::ServerCredentials {
 public:
  Credentials(std::shared_ptr<TlsSource> tls, std::shared_ptr<const ApiKeys> keys,
              std::shared_ptr<RequestLog> log, GrpcObserver observer) {
    fetcher_.source = std::move(tls);
    if (fetcher_.source == nullptr) {
      credentials_ = grpc_insecure_server_credentials_create();
    } else {
      credentials_ = grpc_ssl_server_credentials_create_with_options(
          grpc_ssl_server_credentials_create_options_using_config_fetcher(
              RequestTypeOf(fetcher_.source->options().clients), CertificateFetcher::Fetch,
              &fetcher_));
    }
    if (keys == nullptr) return;
    auto* const check = new KeyCheck{
        .keys = std::move(keys), .log = std::move(log), .observer = std::move(observer), .ids = {}};
    grpc_server_credentials_set_auth_metadata_processor(
        credentials_, {.process = KeyCheck::Process,
                       .destroy = [](void* state) { delete static_cast<KeyCheck*>(state); },
                       .state = check});
  }
  ~Credentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(
      const std::shared_ptr<grpc::AuthMetadataProcessor>& processor) override {
    NIBBLE_CHECK(processor == nullptr);  // keys are checked here already
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  CertificateFetcher fetcher_;
  grpc_server_credentials* credentials_ = nullptr;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(std::shared_ptr<TlsSource> tls,
                                                               std::shared_ptr<const ApiKeys> keys,
                                                               std::shared_ptr<RequestLog> log,
                                                               GrpcObserver observer) {
  return std::make_shared<Credentials>(std::move(tls), std::move(keys), std::move(log),
                                       std::move(observer));
}

}  // namespace nibble::server
