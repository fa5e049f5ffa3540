// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/flash/flash.h"

#include <algorithm>

#include "base/check.h"
#include "comm/flash/coded_chunk.h"

namespace nibble::comm {
namespace {

// A stripe travels in chunks of this share of it, within these bounds: small enough that what is
// coded before the first byte leaves and after the last has come is little, large enough that the
// transport's work for a message is little (comm/README.md).
constexpr int64_t kChunksOfStripe = 4;
constexpr int64_t kMinChunkBytes = 16 << 10;
constexpr int64_t kMaxChunkBytes = 128 << 10;

// A chunk is summed this many steps after its pieces were sent off, and the sums are collected as
// many steps later: meanwhile the link always has the next chunks to carry.
constexpr int64_t kLag = 2;
// Chunks that have buffers at a time: one is sent off, kLag wait to be summed, kLag to be
// collected.
constexpr int64_t kWindow = 2 * kLag + 1;

constexpr uint64_t kSumsTag = uint64_t{1} << 31;  // the second step's messages

int64_t ChunkGroups(const ChunkCoder& coder, int64_t stripe_groups) {
  const int64_t bytes =
      std::clamp(coder.Bytes(stripe_groups) / kChunksOfStripe, kMinChunkBytes, kMaxChunkBytes);
  const int64_t slices = std::max<int64_t>(1, bytes / coder.Bytes(coder.slice_groups()));
  return std::clamp<int64_t>(stripe_groups, 1, slices * coder.slice_groups());
}

// What both algorithms have: chunks in a window of buffers, and the tickets of their messages.
class Exchange {
 public:
  Exchange(const FlashArgs& args, Transport* transport, Isa isa)
      : args_(args),
        transport_(transport),
        rank_(transport->rank()),
        size_(transport->size()),
        coder_(args.codec, args.groups, args.data, isa, args.pool) {}

 protected:
  // Divides stripes of up to so many groups into chunks, each with `num_buffers` buffers.
  void Plan(int64_t stripe_groups, int num_buffers, AlignedBuffer<uint8_t>* scratch) {
    chunk_groups_ = ChunkGroups(coder_, stripe_groups);
    num_chunks_ = (stripe_groups + chunk_groups_ - 1) / chunk_groups_;
    num_buffers_ = num_buffers;
    constexpr int64_t kAlignment = AlignedBuffer<uint8_t>::kAlignment;
    buffer_bytes_ = (coder_.Bytes(chunk_groups_) + kAlignment - 1) / kAlignment * kAlignment;
    const int64_t slots = std::min(kWindow, num_chunks_);
    const auto bytes = static_cast<size_t>(slots * num_buffers * buffer_bytes_);
    if (scratch->size() < bytes) *scratch = AlignedBuffer<uint8_t>(bytes);
    scratch_ = scratch->data();
  }

  uint8_t* Buffer(int64_t chunk, int idx) const {
    return scratch_ + (chunk % kWindow * num_buffers_ + idx) * buffer_bytes_;
  }

  // The other ranks, those after this one first, so that not all send to the same one at a time.
  template <typename Body>
  absl::Status ForPeers(const Body& body) const {
    for (int i = 1; i < size_; ++i) NIBBLE_RETURN_IF_ERROR(body((rank_ + i) % size_));
    return absl::OkStatus();
  }

  // Empty chunks send no message.
  absl::Status Send(int peer, uint64_t tag, const uint8_t* data, int64_t num_groups,
                    std::vector<Ticket>* tickets) {
    if (num_groups == 0) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const Ticket ticket, transport_->Send(peer, args_.tag | tag, data,
                                                                  MessageBytes(num_groups)));
    tickets->push_back(ticket);
    return absl::OkStatus();
  }
  absl::Status Receive(int peer, uint64_t tag, uint8_t* buffer, int64_t num_groups,
                       std::vector<Ticket>* tickets) {
    if (num_groups == 0) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const Ticket ticket, transport_->Receive(peer, args_.tag | tag, buffer,
                                                                     MessageBytes(num_groups)));
    tickets->push_back(ticket);
    return absl::OkStatus();
  }
  absl::Status WaitAll(std::vector<Ticket>* tickets) {
    for (const Ticket ticket : *tickets) {
      NIBBLE_RETURN_IF_ERROR(transport_->Wait(ticket, args_.deadline));
    }
    tickets->clear();
    return absl::OkStatus();
  }

  size_t MessageBytes(int64_t num_groups) const {
    return static_cast<size_t>(coder_.Bytes(num_groups));
  }

  const FlashArgs& args_;
  Transport* const transport_;
  const int rank_;
  const int size_;
  const ChunkCoder coder_;
  int64_t chunk_groups_ = 0;
  int64_t num_chunks_ = 0;

 private:
  int num_buffers_ = 0;
  int64_t buffer_bytes_ = 0;
  uint8_t* scratch_ = nullptr;
};

// Everybody sends its codes to everybody and sums. The sum is coded and decoded as an owner would,
// so that it has the same bits.
class OneShot : Exchange {
 public:
  using Exchange::Exchange;

  absl::Status Run(AlignedBuffer<uint8_t>* scratch) {
    Plan(args_.range.size(), size_ + 1, scratch);  // one of each rank's codes, one of the sum's
    for (int64_t c = 0; c < std::min(kWindow, num_chunks_); ++c) {
      NIBBLE_RETURN_IF_ERROR(PostReceives(c));
    }
    for (int64_t step = 0; step < num_chunks_ + kLag; ++step) {
      if (step < num_chunks_) NIBBLE_RETURN_IF_ERROR(Contribute(step));
      if (step >= kLag) NIBBLE_RETURN_IF_ERROR(Reduce(step - kLag));
    }
    return absl::OkStatus();
  }

 private:
  GroupRange Chunk(int64_t chunk) const { return ChunkOf(args_.range, chunk, chunk_groups_); }

  absl::Status PostReceives(int64_t chunk) {
    return ForPeers([&](int peer) {
      return Receive(peer, static_cast<uint64_t>(chunk), Buffer(chunk, peer), Chunk(chunk).size(),
                     &receives_[chunk % kWindow]);
    });
  }

  absl::Status Contribute(int64_t chunk) {
    uint8_t* const codes = Buffer(chunk, rank_);
    coder_.EncodeChunk(Chunk(chunk), codes);
    return ForPeers([&](int peer) {
      return Send(peer, static_cast<uint64_t>(chunk), codes, Chunk(chunk).size(),
                  &sends_[chunk % kWindow]);
    });
  }

  absl::Status Reduce(int64_t chunk) {
    NIBBLE_RETURN_IF_ERROR(WaitAll(&receives_[chunk % kWindow]));
    std::vector<const uint8_t*> pieces;
    for (int r = 0; r < size_; ++r) pieces.push_back(Buffer(chunk, r));
    coder_.ReduceChunk(Chunk(chunk), pieces, Buffer(chunk, size_));
    NIBBLE_RETURN_IF_ERROR(WaitAll(&sends_[chunk % kWindow]));
    if (chunk + kWindow >= num_chunks_) return absl::OkStatus();
    return PostReceives(chunk + kWindow);
  }

  std::vector<Ticket> sends_[kWindow];
  std::vector<Ticket> receives_[kWindow];
};

// Rank r owns stripe r: all send it their codes of it, it sums, and sends codes of the sum to all.
class TwoShot : Exchange {
 public:
  using Exchange::Exchange;

  absl::Status Run(AlignedBuffer<uint8_t>* scratch) {
    // Stripes differ by a group at most, and all ranks must agree on chunks.
    const int64_t longest = (args_.range.size() + size_ - 1) / size_;
    Plan(longest, 3 * size_, scratch);
    for (int64_t c = 0; c < std::min(kWindow, num_chunks_); ++c) {
      NIBBLE_RETURN_IF_ERROR(PostPieces(c));
    }
    for (int64_t step = 0; step < num_chunks_ + 2 * kLag; ++step) {
      if (step < num_chunks_) NIBBLE_RETURN_IF_ERROR(Contribute(step));
      if (InRange(step - kLag)) NIBBLE_RETURN_IF_ERROR(Reduce(step - kLag));
      if (InRange(step - 2 * kLag)) NIBBLE_RETURN_IF_ERROR(Collect(step - 2 * kLag));
    }
    return absl::OkStatus();
  }

 private:
  // Tickets of a chunk, by what they carry.
  struct Slot {
    std::vector<Ticket> pieces_out;
    std::vector<Ticket> pieces_in;
    std::vector<Ticket> sums_out;
    std::vector<std::vector<Ticket>> sums_in;  // [size], by owner: at most one each
  };

  bool InRange(int64_t chunk) const { return chunk >= 0 && chunk < num_chunks_; }
  GroupRange Chunk(int owner, int64_t chunk) const {
    return ChunkOf(StripeOf(args_.range, owner, size_), chunk, chunk_groups_);
  }
  Slot& SlotOf(int64_t chunk) { return slots_[chunk % kWindow]; }
  // Codes of rank `owner`'s chunk that this rank contributes; of this rank's chunk that `peer`
  // contributes; of the sum of `owner`'s chunk.
  uint8_t* Contribution(int64_t chunk, int owner) const { return Buffer(chunk, owner); }
  uint8_t* Piece(int64_t chunk, int peer) const { return Buffer(chunk, size_ + peer); }
  uint8_t* Sum(int64_t chunk, int owner) const { return Buffer(chunk, 2 * size_ + owner); }

  absl::Status PostPieces(int64_t chunk) {
    return ForPeers([&](int peer) {
      return Receive(peer, static_cast<uint64_t>(chunk), Piece(chunk, peer),
                     Chunk(rank_, chunk).size(), &SlotOf(chunk).pieces_in);
    });
  }

  absl::Status Contribute(int64_t chunk) {
    Slot& slot = SlotOf(chunk);
    slot.sums_in.resize(static_cast<size_t>(size_));
    NIBBLE_RETURN_IF_ERROR(ForPeers([&](int owner) {
      return Receive(owner, kSumsTag | static_cast<uint64_t>(chunk), Sum(chunk, owner),
                     Chunk(owner, chunk).size(), &slot.sums_in[static_cast<size_t>(owner)]);
    }));
    NIBBLE_RETURN_IF_ERROR(ForPeers([&](int owner) {
      const GroupRange range = Chunk(owner, chunk);
      coder_.EncodeChunk(range, Contribution(chunk, owner));
      return Send(owner, static_cast<uint64_t>(chunk), Contribution(chunk, owner), range.size(),
                  &slot.pieces_out);
    }));
    coder_.EncodeChunk(Chunk(rank_, chunk), Contribution(chunk, rank_));
    transport_->Progress();
    return absl::OkStatus();
  }

  absl::Status Reduce(int64_t chunk) {
    Slot& slot = SlotOf(chunk);
    NIBBLE_RETURN_IF_ERROR(WaitAll(&slot.pieces_in));
    std::vector<const uint8_t*> pieces;
    for (int r = 0; r < size_; ++r) {
      pieces.push_back(r == rank_ ? Contribution(chunk, rank_) : Piece(chunk, r));
    }
    const GroupRange range = Chunk(rank_, chunk);
    coder_.ReduceChunk(range, pieces, Sum(chunk, rank_));
    NIBBLE_RETURN_IF_ERROR(ForPeers([&](int peer) {
      return Send(peer, kSumsTag | static_cast<uint64_t>(chunk), Sum(chunk, rank_), range.size(),
                  &slot.sums_out);
    }));
    NIBBLE_RETURN_IF_ERROR(WaitAll(&slot.pieces_out));
    if (!InRange(chunk + kWindow)) return absl::OkStatus();
    return PostPieces(chunk + kWindow);
  }

  absl::Status Collect(int64_t chunk) {
    Slot& slot = SlotOf(chunk);
    for (int i = 1; i < size_; ++i) {
      const int owner = (rank_ + i) % size_;
      NIBBLE_RETURN_IF_ERROR(WaitAll(&slot.sums_in[static_cast<size_t>(owner)]));
      coder_.DecodeChunk(Chunk(owner, chunk), Sum(chunk, owner));
    }
    return WaitAll(&slot.sums_out);
  }

  Slot slots_[kWindow];
};

}  // namespace

absl::Status FlashAllReduce::Run(const FlashArgs& args, Transport* transport) {
  if (transport->size() == 1 || args.range.size() == 0) return absl::OkStatus();
  if (args.algorithm == Algorithm::kOneShot) {
    return OneShot(args, transport, isa_).Run(&scratch_);
  }
  return TwoShot(args, transport, isa_).Run(&scratch_);
}

}  // namespace nibble::comm
