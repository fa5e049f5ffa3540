// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/flash/hierarchy.h"

#include <algorithm>
#include <vector>

namespace nibble::comm {
namespace {

// Low bits of the tags; the exchange between hosts has those below.
constexpr uint64_t kPiecesTag = uint64_t{1} << 30;
constexpr uint64_t kResultTag = uint64_t{3} << 30;

// Stripes are summed in pieces of so many values of each rank (256 KiB), which fit the caches.
constexpr int64_t kPieceValues = 64 << 10;
constexpr int64_t kSumGrain = 4096;

// Values begin..end - 1 of the rows.
struct ValueRange {
  int64_t begin = 0;
  int64_t end = 0;

  size_t bytes() const { return static_cast<size_t>(end - begin) * sizeof(float); }
};

ValueRange StripeValues(const FlashArgs& args, int idx, int num_stripes) {
  const GroupRange stripe = StripeOf(args.range, idx, num_stripes);
  return {FirstValue(args.groups, stripe.begin), FirstValue(args.groups, stripe.end)};
}

ValueRange PieceOf(const ValueRange& stripe, int64_t idx) {
  const int64_t begin = std::min(stripe.begin + idx * kPieceValues, stripe.end);
  return {begin, std::min(begin + kPieceValues, stripe.end)};
}

// out[i] = pieces[0][i] + pieces[1][i] + ...; `out` may be one of them.
void SumInOrder(const std::vector<const float*>& pieces, int64_t count, float* out,
                ThreadPool* pool) {
  const auto sum = [&](int64_t begin, int64_t end) {
    float block[kSumGrain];
    std::copy(pieces[0] + begin, pieces[0] + end, block);
    for (size_t r = 1; r < pieces.size(); ++r) {
      const float* const piece = pieces[r] + begin;
      for (int64_t i = 0; i < end - begin; ++i) block[i] += piece[i];
    }
    std::copy(block, block + (end - begin), out + begin);
  };
  if (pool != nullptr) return pool->ParallelFor(count, kSumGrain, sum);
  for (int64_t i = 0; i < count; i += kSumGrain) sum(i, std::min(i + kSumGrain, count));
}

// Messages under way: receives are waited for first, as peers come to theirs in their own time.
class Messages {
 public:
  Messages(Transport* transport, Deadline deadline) : transport_(transport), deadline_(deadline) {}

  absl::Status Send(int peer, uint64_t tag, const float* data, const ValueRange& range) {
    if (range.bytes() == 0) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const Ticket ticket,
                            transport_->Send(peer, tag, data + range.begin, range.bytes()));
    sends_.push_back(ticket);
    return absl::OkStatus();
  }
  absl::Status Receive(int peer, uint64_t tag, float* data, const ValueRange& range) {
    if (range.bytes() == 0) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const Ticket ticket,
                            transport_->Receive(peer, tag, data + range.begin, range.bytes()));
    receives_.push_back(ticket);
    return absl::OkStatus();
  }
  absl::Status WaitForReceives() { return Wait(&receives_); }
  absl::Status WaitForSends() { return Wait(&sends_); }

 private:
  absl::Status Wait(std::vector<Ticket>* tickets) {
    for (const Ticket ticket : *tickets) {
      NIBBLE_RETURN_IF_ERROR(transport_->Wait(ticket, deadline_));
    }
    tickets->clear();
    return absl::OkStatus();
  }

  Transport* transport_;
  Deadline deadline_;
  std::vector<Ticket> sends_;
  std::vector<Ticket> receives_;
};

}  // namespace

absl::Status HierarchicalAllReduce::Run(const FlashArgs& args, const HierarchyLinks& links) {
  if (args.range.size() == 0) return absl::OkStatus();
  if (links.host != nullptr) NIBBLE_RETURN_IF_ERROR(ReduceOnHost(args, links));
  if (links.across != nullptr) {
    FlashArgs stripe = args;
    const int me = links.host != nullptr ? links.host->rank() : 0;
    stripe.range = StripeOf(args.range, me, links.num_stripes);
    NIBBLE_RETURN_IF_ERROR(flash_.Run(stripe, links.across));
  }
  if (links.host != nullptr) NIBBLE_RETURN_IF_ERROR(GatherOnHost(args, links));
  return absl::OkStatus();
}

absl::Status HierarchicalAllReduce::ReduceOnHost(const FlashArgs& args,
                                                 const HierarchyLinks& links) {
  const int me = links.host->rank();
  const int size = links.host->size();
  const bool is_owner = me < links.num_stripes;
  const int64_t longest =
      (args.range.size() + links.num_stripes - 1) / links.num_stripes * args.groups.group_size;
  const auto pieces = static_cast<size_t>(size * std::min(longest, kPieceValues));
  if (is_owner && pieces_.size() < pieces) pieces_ = AlignedBuffer<float>(pieces);
  const ValueRange mine = is_owner ? StripeValues(args, me, links.num_stripes) : ValueRange{};
  Messages messages(links.host, args.deadline);
  for (int64_t piece = 0; piece * kPieceValues < longest; ++piece) {
    const uint64_t tag = args.tag | kPiecesTag | static_cast<uint64_t>(piece);
    const ValueRange my_piece = PieceOf(mine, piece);
    const int64_t count = my_piece.end - my_piece.begin;
    std::vector<const float*> addends;
    for (int r = 0; r < size; ++r) {
      float* const buffer = pieces_.data() + r * count;
      addends.push_back(r == me ? args.data + my_piece.begin : buffer);
      if (r != me) NIBBLE_RETURN_IF_ERROR(messages.Receive(r, tag, buffer, {0, count}));
    }
    for (int i = 1; i < size; ++i) {
      const int owner = (me + i) % size;
      if (owner >= links.num_stripes) continue;
      const ValueRange stripe = StripeValues(args, owner, links.num_stripes);
      NIBBLE_RETURN_IF_ERROR(messages.Send(owner, tag, args.data, PieceOf(stripe, piece)));
    }
    NIBBLE_RETURN_IF_ERROR(messages.WaitForReceives());
    if (count > 0) SumInOrder(addends, count, args.data + my_piece.begin, args.pool);
    NIBBLE_RETURN_IF_ERROR(messages.WaitForSends());
  }
  return absl::OkStatus();
}

absl::Status HierarchicalAllReduce::GatherOnHost(const FlashArgs& args,
                                                 const HierarchyLinks& links) {
  const int me = links.host->rank();
  const int size = links.host->size();
  const uint64_t tag = args.tag | kResultTag;
  Messages messages(links.host, args.deadline);
  for (int owner = 0; owner < links.num_stripes; ++owner) {
    if (owner == me) continue;
    NIBBLE_RETURN_IF_ERROR(
        messages.Receive(owner, tag, args.data, StripeValues(args, owner, links.num_stripes)));
  }
  if (me < links.num_stripes) {
    const ValueRange mine = StripeValues(args, me, links.num_stripes);
    for (int i = 1; i < size; ++i) {
      NIBBLE_RETURN_IF_ERROR(messages.Send((me + i) % size, tag, args.data, mine));
    }
  }
  NIBBLE_RETURN_IF_ERROR(messages.WaitForReceives());
  return messages.WaitForSends();
}

}  // namespace nibble::comm
