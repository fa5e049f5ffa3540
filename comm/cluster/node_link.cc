// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/node_link.h"

#include <algorithm>
#include <utility>

#include "base/host_port.h"
#include "base/log.h"
#include "comm/cluster/credentials.h"
#include "comm/cluster/frame_parts.h"
#include "comm/cluster/grpc_status.h"
#include "comm/cluster/silence_watch.h"

namespace nibble::comm {
namespace {

// For the connection and each message of the handshake. Short, because a packet that was lost in
// a cut is sent again later and later, and a new connection asks at once.
constexpr std::chrono::milliseconds kJoinPatience{3'000};
constexpr size_t kMaxGoodbyeBytes = 256;

std::shared_ptr<grpc::Channel> ChannelTo(const NodeOptions& options) {
  grpc::ChannelArguments arguments;
  // A channel for one call: its connection, with its own back-off, is shared with no other.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  const auto credentials = ChannelCredentialsOf(options.security, &arguments);
  return grpc::CreateCustomChannel(HostAndPort(options.head_address, options.head_port),
                                   credentials, arguments);
}

}  // namespace

NodeLink::NodeLink(const NodeOptions* options, std::string bind_address, NodeLinkOwner* owner)
    : options_(options),
      bind_address_(std::move(bind_address)),
      owner_(owner),
      stub_(v1::Cluster::NewStub(ChannelTo(*options))),
      last_heard_(Clock::now()) {}

NodeLink::End NodeLink::Run(const std::stop_token& stop) {
  absl::StatusOr<std::string> nonce = MakeNonce();
  if (!nonce.ok()) return {.status = nonce.status()};
  nonces_.node = *std::move(nonce);
  Begin();
  Watch(stop);
  const std::lock_guard lock(mutex_);
  return {.status = why_.has_value() ? *why_ : *done_,
          .goodbye = goodbye_,
          .joined = state_ == State::kMember};
}

void NodeLink::Begin() {
  stub_->async()->Join(&context_, this);
  AddHold();
  StartRead(&incoming_);
  StartCall();
  v1::NodeMessage message;
  message.mutable_hello()->set_protocol(kClusterProtocol);
  message.mutable_hello()->set_nonce(nonces_.node);
  Push(std::move(message));
}

std::chrono::milliseconds NodeLink::Patience() const {
  return state_ == State::kMember ? options_->heartbeat.timeout : kJoinPatience;
}

// Answers in progress need this node's ranks, so the head ends first.
NodeLink::Clock::time_point NodeLink::EndAfterStop() const {
  if (!has_ranks_) return Clock::now();
  log::Info("cluster: node {} keeps its ranks, waiting for node 0 to finish (at most {:g} s)",
            options_->node, std::chrono::duration<double>(options_->goodbye_timeout).count());
  return Clock::now() + options_->goodbye_timeout;
}

// Sends heartbeats and closes a silent connection, until gRPC is done with it.
void NodeLink::Watch(const std::stop_token& stop) {
  SilenceWatch watch(options_->heartbeat.interval);
  std::unique_lock lock(mutex_);
  const auto done = [this] { return done_.has_value(); };
  std::optional<Clock::time_point> ends_at;  // once stop is requested
  while (!done()) {
    const auto silent_at = last_heard_.load() + Patience();
    const auto next = std::min(watch.NextLook(), silent_at);
    if (stop.stop_requested() && !ends_at) ends_at = EndAfterStop();
    if (closing_ || (ends_at && Clock::now() >= *ends_at)) {
      // gRPC ends a cancelled call in little time.
      if (!closing_) {
        lock.unlock();
        Close(absl::CancelledError("this node ends"));
        lock.lock();
      }
      changed_.wait(lock, done);
      return;
    }
    const auto ended = [&] { return done() || closing_; };
    if (ends_at) {
      changed_.wait_until(lock, std::min(next, *ends_at), ended);
    } else {
      changed_.wait_until(lock, stop, next, ended);
    }
    if (closing_) continue;
    if (const auto stall = watch.Stall(); stall > stall.zero()) {
      last_heard_ = last_heard_.load() + stall;
    }
    const auto patience = Patience();
    if (Clock::now() - last_heard_.load() >= patience) {
      lock.unlock();
      Close(absl::DeadlineExceededError(
          fmt::format("nothing was heard from it for {} ms", patience.count())));
      lock.lock();
    } else if (state_ == State::kMember && outbox_.empty()) {
      v1::NodeMessage message;
      message.mutable_heartbeat();
      PushLocked(std::move(message));
    }
  }
}

void NodeLink::Push(v1::NodeMessage message) {
  const std::lock_guard lock(mutex_);
  PushLocked(std::move(message));
}

void NodeLink::PushFrame(int rank, Frame frame) {
  const std::lock_guard lock(mutex_);
  SplitFrame(rank, std::move(frame), [this](v1::FramePart part) {
    v1::NodeMessage message;
    *message.mutable_frame() = std::move(part);
    PushLocked(std::move(message));
  });
}

void NodeLink::PushLocked(v1::NodeMessage message) {
  if (closing_) return;
  if (outbox_.waiting_bytes() > kMaxOutboxBytes) {
    // The reading side then finds the call cancelled, and closes.
    outbox_.Clear();
    context_.TryCancel();
    return;
  }
  if (outbox_.Add(std::move(message))) StartWrite(outbox_.in_flight());
}

void NodeLink::Close(const absl::Status& why) {
  const std::lock_guard lock(mutex_);
  if (closing_) return;
  closing_ = true;
  outbox_.Clear();
  if (!why.ok()) {
    why_ = why;
    // Not for a call that ended by itself: it has a status that tells more.
    context_.TryCancel();
  }
  changed_.notify_all();
  RemoveHold();
}

void NodeLink::OnReadDone(bool ok) {
  // OnDone says why.
  if (!ok) return Close(absl::OkStatus());
  last_heard_ = Clock::now();
  if (const absl::Status status = Handle(); !status.ok()) return Close(status);
  const std::lock_guard lock(mutex_);
  if (!closing_) StartRead(&incoming_);
}

void NodeLink::OnWriteDone(bool ok) {
  const std::lock_guard lock(mutex_);
  // A broken stream is told to the reading side too, with its reason.
  if (ok && outbox_.Written() && !closing_) StartWrite(outbox_.in_flight());
}

void NodeLink::OnDone(const grpc::Status& status) {
  const std::lock_guard lock(mutex_);
  done_ = FromGrpc(status);
  changed_.notify_all();
}

absl::Status NodeLink::Handle() {
  switch (state_.load()) {
    case State::kCalling:
      return HandleChallenge();
    case State::kChallenged:
      return HandleWelcome();
    case State::kMember:
      return HandleMember();
  }
  return Internal("a link without a state");
}

absl::Status NodeLink::HandleChallenge() {
  if (!incoming_.has_challenge()) return DataLoss("it did not answer Hello with Challenge");
  const std::string& secret = options_->security.secret;
  NIBBLE_RETURN_IF_ERROR(CheckChallenge(incoming_.challenge()));
  nonces_.head = incoming_.challenge().nonce();
  v1::NodeMessage message;
  v1::JoinRequest* join = message.mutable_join();
  join->set_node(static_cast<uint32_t>(options_->node));
  join->set_proof(ProofOf(Side::kNode, secret, nonces_, join->node()));
  join->set_num_nodes(static_cast<uint32_t>(options_->shape.num_nodes));
  join->set_ranks_per_node(static_cast<uint32_t>(options_->shape.ranks_per_node));
  join->set_version(options_->identity.version);
  join->set_model_fingerprint(options_->identity.model_fingerprint);
  join->set_options_fingerprint(options_->identity.options_fingerprint);
  join->set_bind_address(bind_address_);
  state_ = State::kChallenged;
  Push(std::move(message));
  return absl::OkStatus();
}

absl::Status NodeLink::HandleWelcome() {
  if (!incoming_.has_welcome()) return DataLoss("it did not answer JoinRequest with Welcome");
  NIBBLE_RETURN_IF_ERROR(CheckWelcome(incoming_.welcome(), nonces_, options_->security.secret,
                                      static_cast<uint32_t>(options_->node)));
  run_id_ = incoming_.welcome().run_id();
  state_ = State::kMember;
  log::Info("cluster: node {} joined the head at {}", options_->node,
            HostAndPort(options_->head_address, options_->head_port));
  return absl::OkStatus();
}

absl::Status NodeLink::HandleMember() {
  switch (incoming_.message_case()) {
    case v1::HeadMessage::kHeartbeat:
      return absl::OkStatus();
    case v1::HeadMessage::kStartRanks:
      has_ranks_ = true;
      owner_->OnStartRanks(this, run_id_);
      return absl::OkStatus();
    case v1::HeadMessage::kRestartRank: {
      const uint32_t rank = incoming_.restart_rank().rank();
      if (!owner_->IsOurs(rank)) return DataLoss("rank {} is none of this node", rank);
      owner_->OnRestart(static_cast<int>(rank), incoming_.restart_rank().why());
      return absl::OkStatus();
    }
    case v1::HeadMessage::kFrame: {
      const uint32_t rank = incoming_.frame().rank();
      if (!owner_->IsOurs(rank)) return DataLoss("rank {} is none of this node", rank);
      return owner_->OnFrame(std::move(*incoming_.mutable_frame()));
    }
    case v1::HeadMessage::kGoodbye: {
      log::Info("cluster: the head says goodbye: {}",
                incoming_.goodbye().reason().substr(0, kMaxGoodbyeBytes));
      goodbye_ = true;
      return absl::CancelledError("it said goodbye");
    }
    default:
      return DataLoss("a message of kind {} does not belong here",
                      static_cast<int>(incoming_.message_case()));
  }
}

}  // namespace nibble::comm
