// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/cluster_hub.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "grpcpp/grpcpp.h"

#include "base/check.h"
#include "base/host_port.h"
#include "base/log.h"
#include "comm/cluster/addresses.h"
#include "comm/cluster/credentials.h"
#include "comm/cluster/frame_parts.h"
#include "comm/cluster/grpc_log.h"
#include "comm/cluster/members.h"
#include "comm/cluster/silence_watch.h"

namespace nibble::comm {
namespace {

// For the nodes to read the goodbye and hang up.
constexpr std::chrono::milliseconds kGoodbyeTime{1'000};
// Between pings to a connection on which nothing comes: one whose machine is gone is closed.
constexpr int kKeepaliveMs = 60'000;

class RefusedCall final : public grpc::ServerBidiReactor<v1::NodeMessage, v1::HeadMessage> {
 public:
  RefusedCall() {
    Finish({grpc::StatusCode::RESOURCE_EXHAUSTED,
            "too many calls that have not joined, or the head ends"});
  }
  void OnDone() override { delete this; }
};

class ClusterService final : public v1::Cluster::CallbackService {
 public:
  ClusterService(Members* members, JoinChecks checks)
      : members_(members), checks_(std::move(checks)) {}

  grpc::ServerBidiReactor<v1::NodeMessage, v1::HeadMessage>* Join(
      grpc::CallbackServerContext* context) override {
    HeadLink* link = members_->BeginLink(context, &checks_);
    if (link == nullptr) return new RefusedCall();
    return link;
  }

 private:
  Members* const members_;
  const JoinChecks checks_;
};

class ClusterHubImpl final : public ClusterHub {
 public:
  ClusterHubImpl(const ClusterHubOptions& options, std::string numeric_address, std::string run_id)
      : shape_(options.shape),
        heartbeat_(options.heartbeat),
        address_(std::move(numeric_address)),
        members_(options.shape, std::move(run_id)),
        service_(&members_, {.shape = options.shape,
                             .identity = options.identity,
                             .secret = options.security.secret}) {}
  ~ClusterHubImpl() override { Stop(); }

  absl::Status Init(ClusterHubOptions options);

  int port() const override { return port_; }
  absl::Status WaitForNodes(Deadline deadline, const std::stop_token& stop) override {
    return members_.WaitForAll(deadline, stop);
  }

  int size() const override { return shape_.num_nodes * shape_.ranks_per_node; }
  absl::Status Start(Observer* observer) override;
  void Send(int rank, Frame frame) override;
  void Restart(int rank, const std::string& why) override;
  std::string Describe(int rank) const override;
  std::string BindAddress(int rank) const override {
    const int node = NodeOf(rank);
    return node == 0 ? address_ : members_.AddressOf(node);
  }
  void Stop() override;

 private:
  int NodeOf(int rank) const {
    NIBBLE_CHECK(rank >= 0 && rank < size());
    return rank / shape_.ranks_per_node;
  }
  void Watch();
  void StopWatching();

  const ClusterShape shape_;
  const HeartbeatOptions heartbeat_;
  const std::string address_;
  Members members_;
  ClusterService service_;
  std::unique_ptr<LocalRanks> local_;
  int port_ = 0;
  std::mutex stop_mutex_;
  std::unique_ptr<grpc::Server> server_;  // guarded by stop_mutex_ once listening

  std::mutex watch_mutex_;
  std::condition_variable watch_wake_;
  bool watch_ends_ = false;  // guarded by watch_mutex_
  std::thread watch_;
};

absl::Status ClusterHubImpl::Init(ClusterHubOptions options) {
  options.local.first_rank = 0;
  options.local.num_ranks = shape_.ranks_per_node;
  NIBBLE_ASSIGN_OR_RETURN(local_, LocalRanks::Create(std::move(options.local)));
  grpc::ServerBuilder builder;
  const std::string listen = HostAndPort(address_, options.port);
  builder.AddListeningPort(listen, ServerCredentialsOf(options.security), &port_);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  // gRPC inflates a message before it looks at its size; nodes send none that is compressed.
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  // Two heads on one port would share its connections unseen.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.RegisterService(&service_);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return Unavailable(
        "cannot take nodes on {}: the address is in use, not permitted or not this host's", listen);
  }
  watch_ = std::thread([this] { Watch(); });
  return absl::OkStatus();
}

absl::Status ClusterHubImpl::Start(Observer* observer) {
  members_.Start(observer);
  return local_->Start(observer);
}

void ClusterHubImpl::Send(int rank, Frame frame) {
  const int node = NodeOf(rank);
  if (node == 0) return local_->Send(rank, std::move(frame));
  NIBBLE_CHECK(frame.payload.size() <= Frame::kMaxPayloadBytes);
  if (const auto link = members_.LinkOf(node)) link->PushFrame(rank, std::move(frame));
}

void ClusterHubImpl::Restart(int rank, const std::string& why) {
  const int node = NodeOf(rank);
  if (node == 0) return local_->Restart(rank, why);
  if (const auto link = members_.LinkOf(node)) {
    v1::HeadMessage message;
    message.mutable_restart_rank()->set_rank(static_cast<uint32_t>(rank));
    message.mutable_restart_rank()->set_why(why);
    link->Push(std::move(message));
  }
}

std::string ClusterHubImpl::Describe(int rank) const {
  const int node = NodeOf(rank);
  if (node == 0) return local_->Describe(rank);
  return fmt::format("rank {} on {}", rank, members_.Describe(node));
}

void ClusterHubImpl::Stop() {
  const std::lock_guard lock(stop_mutex_);
  if (local_ == nullptr) return;
  members_.Stop();
  local_->Stop();
  if (server_ != nullptr) {
    server_->Shutdown(std::chrono::system_clock::now() + kGoodbyeTime);
    server_->Wait();
    members_.WaitUntilGone();
    server_.reset();
  }
  StopWatching();
}

// Closes silent connections and sends heartbeats.
void ClusterHubImpl::Watch() {
  SilenceWatch watch(heartbeat_.interval);
  std::unique_lock lock(watch_mutex_);
  while (!watch_ends_) {
    const auto until = std::min(watch.NextLook(), members_.NextSilence(heartbeat_.timeout));
    watch_wake_.wait_until(lock, until, [this] { return watch_ends_; });
    lock.unlock();
    members_.Look(heartbeat_.timeout, watch.Stall());
    lock.lock();
  }
}

void ClusterHubImpl::StopWatching() {
  if (!watch_.joinable()) return;
  {
    const std::lock_guard lock(watch_mutex_);
    watch_ends_ = true;
  }
  watch_wake_.notify_one();
  watch_.join();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ClusterHub>> ClusterHub::Listen(ClusterHubOptions options) {
  NIBBLE_RETURN_IF_ERROR(
      Validate(options.shape, options.identity, options.security, options.heartbeat));
  NIBBLE_RETURN_IF_ERROR(CheckCertificates(options.security));
  if (options.port < 0 || options.port > 65535) {
    return InvalidArgument("port {} is none: wanted are 0 to 65535", options.port);
  }
  NIBBLE_ASSIGN_OR_RETURN(std::string address, ToNumeric(options.address));
  if (IsEveryInterface(address)) {
    return InvalidArgument("the head cannot be reached at {}: give the address of one interface",
                           address);
  }
  NIBBLE_ASSIGN_OR_RETURN(std::string run_id, MakeNonce());
  LimitGrpcLog();
  auto hub = std::make_unique<ClusterHubImpl>(options, std::move(address), std::move(run_id));
  NIBBLE_RETURN_IF_ERROR(hub->Init(std::move(options)));
  return std::unique_ptr<ClusterHub>(std::move(hub));
}

}  // namespace nibble::comm
