// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// TcpTransport over UCX's active messages. A message goes as pieces, in order; each carries a
// header that says who sends and where in which message the piece belongs. Matching a message with
// its Receive is done here and not by UCX, so that nothing reaches a buffer before its sender and
// its size were checked.
//
//   Send     all pieces are given to ucp_am_send_nbx, which sends out of the caller's buffer, and
//            after what may fill a socket an end, which says when the kernel has it all
//   arrival  OnMessage: the first piece finds the posted Receive of its tag, or makes an Early;
//            this and the following ones are copied there
//   Receive  takes what is early (and what is still to come of it), or is posted
//
// UCX's rendezvous, which would save that copy, is not used: its answers wait behind the data of
// the other direction in the same stream, so that two large messages that cross take turns
// (README.md).
//
// Invariants:
// 1. UCX is only called by the thread that calls the transport; Abort sets a flag and a wake-up.
// 2. A Receive is done, or in its peer's `posted`, or its `arriving`.
// 3. Once broken_ is set there is no worker_, and nothing of UCX refers to a caller's buffer.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "comm/tcp/rank_address.h"
#include "comm/tcp/tcp_transport.h"
#include "comm/tcp/ucx_worker.h"

namespace nibble::comm {

class UcxTransport final : public TcpTransport {
 public:
  // `wake_fd`: an eventfd, owned from now on. `own`: of this rank; its worker's address is set.
  UcxTransport(std::unique_ptr<UcxWorker> worker, int wake_fd, RankAddress own,
               const TcpPlace& place);
  ~UcxTransport() override;

  int rank() const override { return own_.rank; }
  int size() const override { return own_.size; }
  std::string name() const override { return "tcp"; }
  const std::string& address() const override { return address_; }
  absl::Status Connect(std::span<const std::string> addresses, Deadline deadline) override;

  absl::StatusOr<Ticket> Send(int peer, uint64_t tag, const void* data, size_t bytes) override;
  absl::StatusOr<Ticket> Receive(int peer, uint64_t tag, void* buffer, size_t bytes) override;
  absl::Status Wait(Ticket ticket, Deadline deadline) override;
  void Progress() override;
  void Abort(const std::string& reason) override;

 private:
  static constexpr unsigned kMessageId = 1;  // of UCX: one handler for all
  enum Kind : uint32_t {
    kHello = 1,  // the first message on a connection
    kWelcome,    // its answer: both directions work
    kData,
    kEnd,  // after kData, for its sender; means nothing to the receiver
  };
  struct Header {
    uint64_t nonce = 0;  // of the sender, as its address told
    uint64_t tag = 0;
    uint64_t bytes = 0;     // of the whole message
    uint64_t offset = 0;    // of this piece
    uint64_t sequence = 0;  // counts the pieces of this pair and direction
    uint32_t kind = 0;
    uint32_t rank = 0;  // of the sender
  };
  static_assert(sizeof(Header) == 48);

  // On its way out.
  struct Piece {
    Header header;  // UCX reads it as long as the request lives
    void* request = nullptr;
  };
  // One message under way.
  struct Operation {
    int peer = 0;
    uint64_t tag = 0;
    std::byte* buffer = nullptr;  // of a Receive
    size_t bytes = 0;
    size_t received = 0;
    std::vector<Piece> pieces;  // of a Send
    size_t pieces_sent = 0;
    bool done = false;
    absl::Status status;  // of what is done
  };
  // A message that came before its Receive.
  struct Early {
    uint64_t tag = 0;
    uint64_t bytes = 0;
    std::vector<std::byte> data;  // what has come of them
  };
  struct Peer {
    UcxTransport* transport = nullptr;
    int rank = 0;
    std::string name;  // "rank 1 (10.0.0.2:40123)"
    uint64_t nonce = 0;
    ucp_ep_h endpoint = nullptr;
    bool said_hello = false, welcomed = false, said_welcome = false;
    uint64_t sent = 0;         // pieces
    uint64_t received = 0;     // pieces
    size_t unended_bytes = 0;  // sent since the last kEnd
    absl::Status failure;      // not OK: the connection is of no more use
    std::deque<Operation*> posted;
    std::deque<Early> early;  // in order of arrival
    // Where the rest of the message goes whose first pieces came; neither between messages.
    Operation* arriving = nullptr;
    bool arriving_early = false;  // into the last of `early`
  };

  std::string NameOf(const RankAddress& address) const;
  absl::Status ReadAddresses(std::span<const std::string> addresses);
  absl::Status Greet(Deadline deadline);
  void Say(Peer* peer, Kind kind);
  void AnswerHellos();
  void LetOthersFinish(std::chrono::milliseconds grace);

  void StartSend(Peer* peer, Kind kind, uint64_t tag, const void* data, size_t bytes,
                 Operation* operation);
  bool StartPiece(const Peer& peer, Piece* piece, const void* data, size_t bytes,
                  Operation* operation);
  void FreeRequests(Operation* operation) const;
  bool Done(Operation* operation);
  // Not OK once broken, or aborted: then broken now.
  absl::Status CheckUsable();
  absl::Status CheckPeer(int peer);
  absl::Status SizesDiffer(const Peer& peer, uint64_t tag, size_t sent, size_t expected) const;

  static ucs_status_t OnMessage(void* self, const void* header, size_t header_bytes, void* data,
                                size_t bytes, const ucp_am_recv_param_t* param);
  static void OnError(void* peer, ucp_ep_h endpoint, ucs_status_t status);
  // The sender of a piece, or null for nobody of this group.
  Peer* SenderOf(const Header& header);
  absl::Status Deliver(Peer* peer, const Header& header, const std::byte* data, size_t bytes);
  absl::Status BeginArrival(Peer* peer, const Header& header);
  static absl::Status Append(const Peer& peer, Early* early, const std::byte* data, size_t bytes);

  // Progresses until `done`, spinning for a while, then asleep. DEADLINE_EXCEEDED has no message.
  absl::Status Until(const std::function<bool()>& done, const Peer* peer, Deadline deadline);
  absl::Status Break(absl::Status status);
  void TearDown(bool flush);

  const RankAddress own_;
  const std::string address_;
  const int first_rank_;  // as TcpPlace's, as the next
  const int rank_stride_;
  const bool may_sleep_;
  const int wake_fd_;
  const UcxLibrary& ucx_;
  std::unique_ptr<UcxWorker> worker_;
  bool closing_ = false;
  absl::Status broken_;
  std::vector<Peer> peers_;  // [size]; the own one stays empty
  std::unordered_map<Ticket, std::unique_ptr<Operation>> operations_;
  std::vector<std::unique_ptr<Operation>> greetings_;  // without tickets
  Ticket next_ticket_ = 1;
  uint64_t num_refused_ = 0;
  size_t early_bytes_ = 0;

  std::atomic<bool> aborted_{false};
  std::mutex mutex_;
  std::string abort_reason_;  // guarded by mutex_
};

}  // namespace nibble::comm
