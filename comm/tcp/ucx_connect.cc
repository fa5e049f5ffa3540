// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From a place to a connected group: the first half of UcxTransport.
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/host_port.h"
#include "comm/tcp/ucx_transport.h"

namespace nibble::comm {
namespace {

using namespace std::chrono_literals;

// What a rank that gives up connecting leaves the others; see LetOthersFinish.
constexpr std::chrono::milliseconds kGrace = 300ms;
constexpr std::chrono::milliseconds kGraceOfAbort = 30ms;
constexpr std::chrono::nanoseconds kNap = 1ms;

}  // namespace

absl::StatusOr<std::unique_ptr<TcpTransport>> TcpTransport::Open(const TcpPlace& place) {
  if (place.size < 1 || place.size > RankAddress::kMaxSize || place.rank < 0 ||
      place.rank >= place.size) {
    return InvalidArgument("rank {} of {}, the limit is {} ranks", place.rank, place.size,
                           RankAddress::kMaxSize);
  }
  if (place.group_id.empty() || place.group_id.size() > RankAddress::kMaxGroupIdBytes) {
    return InvalidArgument("a group id of {} bytes, the limit is 1 to {}", place.group_id.size(),
                           RankAddress::kMaxGroupIdBytes);
  }
  RankAddress own = {.generation = place.generation,
                     .nonce = 0,
                     .rank = place.rank,
                     .size = place.size,
                     .port = 0,
                     .group_id = place.group_id,
                     .host = place.bind_address,
                     .worker = {}};
  if (getrandom(&own.nonce, sizeof(own.nonce), 0) != sizeof(own.nonce)) {
    return Unavailable("no random numbers: {}", std::strerror(errno));
  }
  NIBBLE_ASSIGN_OR_RETURN(auto worker, UcxWorker::Open(place.bind_address));
  own.port = worker->port();
  own.worker = worker->address();
  if (own.worker.size() > RankAddress::kMaxWorkerBytes) {
    return Internal("UCX's address has {} bytes, the limit is {}", own.worker.size(),
                    RankAddress::kMaxWorkerBytes);
  }
  const int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd < 0) return Unavailable("no eventfd: {}", std::strerror(errno));
  return std::make_unique<UcxTransport>(std::move(worker), wake_fd, std::move(own), place);
}

UcxTransport::UcxTransport(std::unique_ptr<UcxWorker> worker, int wake_fd, RankAddress own,
                           const TcpPlace& place)
    : own_(std::move(own)),
      address_(own_.Serialize()),
      first_rank_(place.first_rank),
      rank_stride_(place.rank_stride),
      may_sleep_(place.may_sleep),
      wake_fd_(wake_fd),
      ucx_(worker->ucx()),
      worker_(std::move(worker)),
      peers_(static_cast<size_t>(own_.size)) {
  ucp_am_handler_param_t handler = {};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.cb = OnMessage;
  handler.arg = this;
  ucx_.worker_set_am_recv_handler(worker_->get(), &handler);
}

UcxTransport::~UcxTransport() {
  // Without an error all was waited for and lies in the kernel; an orderly end lets it reach the
  // peers.
  if (worker_ != nullptr) TearDown(!aborted_.load() && operations_.empty() && greetings_.empty());
  close(wake_fd_);
}

std::string UcxTransport::NameOf(const RankAddress& address) const {
  return fmt::format("rank {} ({})", first_rank_ + address.rank * rank_stride_,
                     HostAndPort(address.host, address.port));
}

absl::Status UcxTransport::ReadAddresses(std::span<const std::string> addresses) {
  if (addresses.size() != peers_.size()) {
    return InvalidArgument("{} addresses for {} ranks", addresses.size(), peers_.size());
  }
  std::vector<std::string> workers(peers_.size());
  for (int r = 0; r < size(); ++r) {
    const std::string& bytes = addresses[static_cast<size_t>(r)];
    auto parsed = RankAddress::Parse(bytes);
    if (!parsed.ok()) return Annotate(parsed.status(), fmt::format("address of rank {}", r));
    const RankAddress& address = *parsed;
    if (address.group_id != own_.group_id || address.generation != own_.generation) {
      return absl::FailedPreconditionError(fmt::format(
          "{} is of group '{}', generation {}; this one is of group '{}', generation {}",
          NameOf(address), address.group_id, address.generation, own_.group_id, own_.generation));
    }
    if (address.rank != r || address.size != size()) {
      return InvalidArgument("the address of rank {} of {} is that of rank {} of {}", r, size(),
                             address.rank, address.size);
    }
    if (r == rank()) {
      if (bytes != address_) {
        return InvalidArgument("another process has the place of rank {}", r);
      }
      continue;
    }
    Peer& peer = peers_[static_cast<size_t>(r)];
    peer.transport = this;
    peer.rank = r;
    peer.name = NameOf(address);
    peer.nonce = address.nonce;
    workers[static_cast<size_t>(r)] = address.worker;
  }
  for (Peer& peer : peers_) {  // nobody is dialled before all addresses are right
    if (peer.transport == nullptr) continue;
    NIBBLE_ASSIGN_OR_RETURN(
        peer.endpoint, worker_->ConnectTo(workers[static_cast<size_t>(peer.rank)], OnError, &peer));
  }
  return absl::OkStatus();
}

absl::Status UcxTransport::Connect(std::span<const std::string> addresses, Deadline deadline) {
  if (!broken_.ok()) return broken_;
  if (absl::Status status = ReadAddresses(addresses); !status.ok()) return Break(status);
  if (absl::Status status = Greet(deadline); !status.ok()) {
    LetOthersFinish(absl::IsAborted(status) ? kGraceOfAbort : kGrace);
    return Break(status);
  }
  worker_->StopListening();
  return absl::OkStatus();
}

// UCX 1.13 fails an assertion, and with it the process, when its peer leaves right after it has
// accepted a connection and before the endpoints have agreed. A group that cannot form would so
// take ranks with it that have nothing to do with the fault: whoever gives up first sees the
// others' greetings through.
void UcxTransport::LetOthersFinish(std::chrono::milliseconds grace) {
  const Deadline deadline = Deadline::After(grace);
  const auto finished = [](const Peer& peer) {
    return peer.transport == nullptr || !peer.failure.ok() ||
           (peer.said_hello && peer.said_welcome);
  };
  while (!deadline.Passed() && !std::ranges::all_of(peers_, finished)) {
    AnswerHellos();
    if (!worker_->Progress()) {
      worker_->Sleep(wake_fd_, std::min<std::chrono::nanoseconds>(deadline.Remaining(), kNap));
    }
  }
}

void UcxTransport::Say(Peer* peer, Kind kind) {
  greetings_.push_back(std::make_unique<Operation>());
  greetings_.back()->peer = peer->rank;
  StartSend(peer, kind, 0, nullptr, 0, greetings_.back().get());
}

void UcxTransport::AnswerHellos() {
  for (Peer& peer : peers_) {
    if (peer.transport == nullptr || !peer.said_hello || peer.welcomed) continue;
    peer.welcomed = true;
    Say(&peer, kWelcome);
  }
}

// A peer that answers our hello has our nonce from our address, as we have its own: both ends know
// that they are of the same generation.
absl::Status UcxTransport::Greet(Deadline deadline) {
  const auto start = Deadline::Clock::now();
  for (Peer& peer : peers_) {
    if (peer.transport != nullptr) Say(&peer, kHello);
  }
  const auto done = [this] {
    AnswerHellos();
    bool all = true;
    for (const Peer& peer : peers_) {
      if (peer.transport == nullptr) continue;
      all = all && peer.welcomed && peer.said_welcome;
      // Whoever failed ends the wait.
      if (!peer.failure.ok() && !(peer.said_hello && peer.said_welcome)) return true;
    }
    for (const auto& greeting : greetings_) all = Done(greeting.get()) && all;
    return all;
  };
  absl::Status status = Until(done, nullptr, deadline);
  for (const Peer& peer : peers_) {
    if (status.ok() && !(peer.said_hello && peer.said_welcome)) status = peer.failure;
  }
  if (absl::IsDeadlineExceeded(status)) {
    std::string silent;
    for (const Peer& peer : peers_) {
      if (peer.transport != nullptr && !(peer.said_hello && peer.said_welcome)) {
        silent += (silent.empty() ? "" : ", ") + peer.name;
      }
    }
    const std::chrono::duration<double> waited = Deadline::Clock::now() - start;
    return absl::DeadlineExceededError(
        fmt::format("{} did not answer within {:.1f} s", silent, waited.count()));
  }
  NIBBLE_RETURN_IF_ERROR(status);
  for (const auto& greeting : greetings_) NIBBLE_RETURN_IF_ERROR(greeting->status);
  greetings_.clear();
  return absl::OkStatus();
}

}  // namespace nibble::comm
