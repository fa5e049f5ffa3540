// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/head_link.h"

#include <utility>

#include "comm/cluster/frame_parts.h"
#include "comm/cluster/grpc_status.h"

namespace nibble::comm {
namespace {

// "ipv4:10.77.0.2:41234" and "ipv6:%5B::1%5D:41234" as people write them.
std::string Readable(std::string peer) {
  const auto replace = [&](std::string_view from, std::string_view to) {
    if (const size_t at = peer.find(from); at != std::string::npos) {
      peer.replace(at, from.size(), to);
    }
  };
  if (peer.starts_with("ipv")) peer.erase(0, 5);
  replace("%5B", "[");
  replace("%5D", "]");
  return peer;
}

}  // namespace

HeadLink::HeadLink(grpc::CallbackServerContext* context, const JoinChecks* checks,
                   HeadLinkOwner* owner)
    : context_(context),
      checks_(checks),
      owner_(owner),
      peer_(Readable(context->peer())),
      last_heard_(Clock::now()) {}

void HeadLink::Begin() {
  self_ = shared_from_this();
  StartRead(&incoming_);
}

void HeadLink::Welcome(const std::string& run_id) {
  v1::HeadMessage message;
  message.mutable_welcome()->set_run_id(run_id);
  message.mutable_welcome()->set_proof(
      ProofOf(Side::kHead, checks_->secret, nonces_, static_cast<uint32_t>(node_)));
  Push(std::move(message));
  // Now heartbeats may follow.
  state_ = State::kMember;
}

void HeadLink::Push(v1::HeadMessage message) {
  const std::lock_guard lock(mutex_);
  PushLocked(std::move(message));
}

void HeadLink::PushFrame(int rank, Frame frame) {
  // Under one lock, so that the parts follow each other.
  const std::lock_guard lock(mutex_);
  SplitFrame(rank, std::move(frame), [this](v1::FramePart part) {
    v1::HeadMessage message;
    *message.mutable_frame() = std::move(part);
    PushLocked(std::move(message));
  });
}

void HeadLink::Beat() {
  const std::lock_guard lock(mutex_);
  if (!outbox_.empty()) return;
  v1::HeadMessage message;
  message.mutable_heartbeat();
  PushLocked(std::move(message));
}

void HeadLink::PushLocked(v1::HeadMessage message) {
  if (finished_) return;
  if (outbox_.waiting_bytes() > kMaxOutboxBytes) {
    // The reading side then finds the call cancelled, and closes.
    outbox_.Clear();
    context_->TryCancel();
    return;
  }
  if (outbox_.Add(std::move(message))) StartWrite(outbox_.in_flight());
}

void HeadLink::Close(const absl::Status& why, bool cut) {
  {
    const std::lock_guard lock(mutex_);
    if (finished_) return;
    finished_ = true;
    outbox_.Clear();
  }
  // Before Finish, after which the owner may be gone at any time.
  owner_->OnClosed(this, why);
  if (cut) context_->TryCancel();
  Finish(ToGrpc(why));
}

void HeadLink::OnReadDone(bool ok) {
  if (!ok) return Close(Unavailable("the node closed the connection"), /*cut=*/false);
  {
    const std::lock_guard lock(mutex_);
    if (finished_) return;  // what comes later is not looked at
  }
  last_heard_ = Clock::now();
  if (const absl::Status status = Handle(); !status.ok()) return Close(status, /*cut=*/false);
  const std::lock_guard lock(mutex_);
  if (!finished_) StartRead(&incoming_);
}

void HeadLink::OnWriteDone(bool ok) {
  if (!ok) return Close(Unavailable("the connection to the node broke"), /*cut=*/false);
  const std::lock_guard lock(mutex_);
  if (outbox_.Written() && !finished_) StartWrite(outbox_.in_flight());
}

void HeadLink::OnCancel() { Close(Unavailable("the connection to the node broke"), /*cut=*/false); }

void HeadLink::OnDone() {
  // The owner's last word may be that nobody needs the checks and itself any more.
  const std::shared_ptr<HeadLink> self = std::move(self_);
  owner_->OnGone();
}

absl::Status HeadLink::Handle() {
  switch (state_.load()) {
    case State::kHello:
      return HandleHello();
    case State::kChallenged:
      return HandleJoin();
    case State::kMember:
      return owner_->OnMessage(this, &incoming_);
  }
  return Internal("a link without a state");
}

absl::Status HeadLink::HandleHello() {
  if (!incoming_.has_hello()) return InvalidArgument("it did not begin with Hello");
  NIBBLE_RETURN_IF_ERROR(CheckHello(incoming_.hello()));
  NIBBLE_ASSIGN_OR_RETURN(nonces_.head, MakeNonce());
  nonces_.node = incoming_.hello().nonce();
  v1::HeadMessage message;
  message.mutable_challenge()->set_protocol(kClusterProtocol);
  message.mutable_challenge()->set_nonce(nonces_.head);
  state_ = State::kChallenged;
  Push(std::move(message));
  return absl::OkStatus();
}

absl::Status HeadLink::HandleJoin() {
  if (!incoming_.has_join()) return InvalidArgument("it did not answer Challenge with JoinRequest");
  const v1::JoinRequest& join = incoming_.join();
  NIBBLE_RETURN_IF_ERROR(
      CheckJoin(join, nonces_, checks_->shape, checks_->identity, checks_->secret));
  node_ = static_cast<int>(join.node());
  return owner_->OnJoin(self_, join);
}

}  // namespace nibble::comm
