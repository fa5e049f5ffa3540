// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/grpc_server.h"

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"

#include "base/batch_scheduling.h"
#include "server/grpc/connection_acceptor.h"
#include "server/grpc/credentials.h"
#include "server/grpc/nibble_service.h"

namespace nibble::server {
namespace {

constexpr auto kHealthPeriod = std::chrono::milliseconds(100);

class GrpcServerImpl final : public GrpcServer {
 public:
  GrpcServerImpl(const GrpcServerConfig& config, const ServiceGate* gate,
                 std::function<bool()> is_ready)
      : is_ready_(std::move(is_ready)),
        nibble_service_(gate, config.max_stream_pending_bytes, config.request_log, config.observer),
        credentials_(MakeServerCredentials(config.tls, config.api_keys, config.request_log,
                                           config.observer)) {}
  ~GrpcServerImpl() override { Stop(0); }

  absl::Status Listen(const GrpcServerConfig& config) {
    // Both are process-wide switches of gRPC that must be set before a builder is made; setting
    // them twice is harmless.
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    NIBBLE_ASSIGN_OR_RETURN(
        acceptor_, ConnectionAcceptor::Listen(config.host, config.port, config.max_connections));
    grpc::ServerBuilder builder;
    auto connections = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials_);
    builder.SetMaxReceiveMessageSize(config.max_receive_message_bytes);
    // gRPC inflates a message before it looks at the limit, and outside the quota below.
    for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
      builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
    }
    // Without it, whoever sends messages but for their ends holds a message's bytes a connection.
    grpc::ResourceQuota quota("nibble");
    builder.SetResourceQuota(quota.Resize(static_cast<size_t>(config.max_buffered_bytes)));
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, config.max_metadata_bytes);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, config.max_concurrent_streams);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                               config.handshake_timeout_seconds * 1000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, config.keepalive_seconds * 1000);
    // Clients may ping every 10 s also while nothing is streamed, without being cut off for it.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, config.idle_seconds * 1000);
    builder.RegisterService(&nibble_service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return Internal("gRPC cannot start a server");
    SetServing(false);
    acceptor_->Start([taker = std::shared_ptr<grpc::experimental::ExternalConnectionAcceptor>(
                          std::move(connections))](int fd) {
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
      connection.fd = fd;
      taker->HandleNewConnection(&connection);
    });
    health_thread_ = std::thread([this] { WatchHealth(); });
    return absl::OkStatus();
  }

  int port() const override { return acceptor_->port(); }
  int64_t num_connections() const override { return acceptor_->num_connections(); }

  void Stop(int64_t grace_ms) override {
    if (server_ == nullptr) return;
    StopWatchingHealth();
    SetServing(false);
    acceptor_->Stop();  // gRPC does not close what it is given later
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(grace_ms));
    server_->Wait();
    server_.reset();
  }

 private:
  void SetServing(bool serving) {
    grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
    health->SetServingStatus(serving);  // every service registered so far, and ""
    health->SetServingStatus(v1::Nibble::service_full_name(), serving);
  }

  // gRPC's health service is told, it does not ask; nobody tells when the engine fails.
  void WatchHealth() {
    bool serving = false;  // as Listen set it
    std::unique_lock lock(mutex_);
    do {
      if (is_ready_() == serving) continue;
      serving = !serving;
      SetServing(serving);
    } while (!wake_.wait_for(lock, kHealthPeriod, [this] { return stopping_; }));
  }

  void StopWatchingHealth() {
    if (!health_thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    health_thread_.join();
  }

  const std::function<bool()> is_ready_;
  NibbleService nibble_service_;
  const std::shared_ptr<grpc::ServerCredentials> credentials_;  // outlives server_
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ConnectionAcceptor> acceptor_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread health_thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerConfig& config,
                                                              const ServiceGate* gate,
                                                              std::function<bool()> is_ready) {
  const ScopedBatchScheduling batch;  // of the threads that gRPC starts here and in them
  auto server = std::make_unique<GrpcServerImpl>(config, gate, std::move(is_ready));
  NIBBLE_RETURN_IF_ERROR(server->Listen(config));
  return std::unique_ptr<GrpcServer>(std::move(server));
}

}  // namespace nibble::server
