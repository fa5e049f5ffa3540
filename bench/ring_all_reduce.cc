// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/ring_all_reduce.h"

#include <algorithm>

namespace nibble::bench {
namespace {

constexpr int64_t kPieceValues = 64 << 10;

int64_t NumPieces(int64_t values) { return (values + kPieceValues - 1) / kPieceValues; }

}  // namespace

RingAllReduce::Range RingAllReduce::Segment(int64_t count, int idx) const {
  const int size = transport_->size();
  const int segment = (idx % size + size) % size;
  return {count * segment / size, count * (segment + 1) / size};
}

absl::Status RingAllReduce::Send(const BFloat16* data, const Range& piece, uint64_t tag) {
  const int next = (transport_->rank() + 1) % transport_->size();
  const auto bytes = static_cast<size_t>(piece.end - piece.begin) * sizeof(BFloat16);
  NIBBLE_ASSIGN_OR_RETURN(const comm::Ticket ticket,
                          transport_->Send(next, tag, data + piece.begin, bytes));
  sends_.push_back(ticket);
  return absl::OkStatus();
}

absl::Status RingAllReduce::Receive(BFloat16* data, const Range& piece, uint64_t tag,
                                    std::vector<comm::Ticket>* tickets) {
  const int previous = (transport_->rank() + transport_->size() - 1) % transport_->size();
  const auto bytes = static_cast<size_t>(piece.end - piece.begin) * sizeof(BFloat16);
  NIBBLE_ASSIGN_OR_RETURN(const comm::Ticket ticket,
                          transport_->Receive(previous, tag, data, bytes));
  tickets->push_back(ticket);
  return absl::OkStatus();
}

absl::Status RingAllReduce::WaitForSends(size_t count, comm::Deadline deadline) {
  for (size_t i = 0; i < count; ++i) {
    NIBBLE_RETURN_IF_ERROR(transport_->Wait(sends_[i], deadline));
  }
  sends_.erase(sends_.begin(), sends_.begin() + static_cast<std::ptrdiff_t>(count));
  return absl::OkStatus();
}

absl::Status RingAllReduce::Run(BFloat16* data, int64_t count, comm::Deadline deadline) {
  const int size = transport_->size();
  const int rank = transport_->rank();
  const int num_steps = 2 * (size - 1);
  const uint64_t base = (uint64_t{1} << 63) | (static_cast<uint64_t>(operation_++) << 32);
  // Steps 0..size - 2 sum, those after gather; the segment that comes in step s is sent on in step
  // s + 1.
  const auto incoming_segment = [&](int step) {
    return Segment(count, step < size - 1 ? rank - step - 1 : rank - step + size - 1);
  };
  const auto tag = [&](int step, int64_t piece) {
    return base | static_cast<uint64_t>(step) << 20 | static_cast<uint64_t>(piece);
  };
  const auto piece_of = [](const Range& segment, int64_t piece) {
    const int64_t begin = segment.begin + piece * kPieceValues;
    return Range{begin, std::min(begin + kPieceValues, segment.end)};
  };
  const auto segment_values = static_cast<size_t>(count / size + 1);
  if (incoming_.size() < segment_values) incoming_ = AlignedBuffer<BFloat16>(segment_values);

  const Range first = Segment(count, rank);
  for (int64_t p = 0; p < NumPieces(first.end - first.begin); ++p) {
    NIBBLE_RETURN_IF_ERROR(Send(data, piece_of(first, p), tag(0, p)));
  }
  size_t num_earlier_sends = 0;  // before those of the step under way
  for (int step = 0; step < num_steps; ++step) {
    const bool sums = step < size - 1;
    // What is gathered goes where the summing steps' segments were sent from; those sent in this
    // step wait for their receivers, which may be waiting here.
    if (step == size - 1) NIBBLE_RETURN_IF_ERROR(WaitForSends(num_earlier_sends, deadline));
    num_earlier_sends = sends_.size();
    const Range segment = incoming_segment(step);
    const int64_t num_pieces = NumPieces(segment.end - segment.begin);
    std::vector<comm::Ticket> receives;
    for (int64_t p = 0; p < num_pieces; ++p) {
      const Range piece = piece_of(segment, p);
      BFloat16* const target =
          sums ? incoming_.data() + (piece.begin - segment.begin) : data + piece.begin;
      NIBBLE_RETURN_IF_ERROR(Receive(target, piece, tag(step, p), &receives));
    }
    for (int64_t p = 0; p < num_pieces; ++p) {
      NIBBLE_RETURN_IF_ERROR(transport_->Wait(receives[static_cast<size_t>(p)], deadline));
      const Range piece = piece_of(segment, p);
      const BFloat16* const addends = incoming_.data() + (piece.begin - segment.begin);
      for (int64_t i = piece.begin; sums && i < piece.end; ++i) {
        data[i] = ToBFloat16(ToFloat(data[i]) + ToFloat(addends[i - piece.begin]));
      }
      if (step + 1 < num_steps) NIBBLE_RETURN_IF_ERROR(Send(data, piece, tag(step + 1, p)));
    }
  }
  return WaitForSends(sends_.size(), deadline);
}

}  // namespace nibble::bench
