// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/all_to_all_experts.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace nibble::bench {
namespace {

constexpr int64_t kRowsPerPiece = 4;
constexpr size_t kIdBytes = sizeof(int32_t);

size_t PaddedIds(int64_t num_rows) {
  return (static_cast<size_t>(num_rows) * kIdBytes + 63) / 64 * 64;
}

}  // namespace

AllToAllExperts::AllToAllExperts(comm::Transport* transport, const comm::CodecDesc& codec,
                                 int64_t hidden, Isa isa, ThreadPool* pool)
    : transport_(transport),
      codec_(codec),
      groups_{.row_size = hidden, .group_size = codec.group_size},
      row_bytes_(comm::EncodedBytes(codec, groups_.groups_per_row())),
      isa_(isa),
      pool_(pool) {}

absl::Status AllToAllExperts::Run(const RoutedTokens& tokens, const Experts& experts, float* x,
                                  comm::Deadline deadline) {
  NIBBLE_RETURN_IF_ERROR(ReduceScatter(tokens.num_tokens, x, deadline));
  NIBBLE_RETURN_IF_ERROR(Dispatch(tokens, x, deadline));
  experts(experts_of_received_, received_rows_.data(),
          static_cast<int64_t>(experts_of_received_.size()));
  NIBBLE_RETURN_IF_ERROR(Return(tokens, x, deadline));
  return AllGather(tokens.num_tokens, x, deadline);
}

absl::Status AllToAllExperts::Exchange(const Messages& out, Messages* in, comm::Deadline deadline) {
  const uint64_t tag = (uint64_t{1} << 62) | exchange_++;
  std::vector<comm::Ticket> tickets;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    AlignedBuffer<uint8_t>& buffer = (*in)[static_cast<size_t>(peer)];
    NIBBLE_ASSIGN_OR_RETURN(tickets.emplace_back(),
                            transport_->Receive(peer, tag, buffer.data(), buffer.size()));
  }
  for (int step = 1; step < size(); ++step) {  // not all to the same rank at once
    const int peer = (rank() + step) % size();
    const AlignedBuffer<uint8_t>& message = out[static_cast<size_t>(peer)];
    bytes_sent_ += static_cast<int64_t>(message.size());
    NIBBLE_ASSIGN_OR_RETURN(tickets.emplace_back(),
                            transport_->Send(peer, tag, message.data(), message.size()));
  }
  for (const comm::Ticket ticket : tickets) {
    NIBBLE_RETURN_IF_ERROR(transport_->Wait(ticket, deadline));
  }
  return absl::OkStatus();
}

template <typename Source>
void AllToAllExperts::EncodeRows(int64_t num_rows, const Source& source, uint8_t* out) {
  pool_->ParallelFor(num_rows, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      comm::Encode(codec_, groups_, source(i), 0, groups_.groups_per_row(), out + i * row_bytes_,
                   isa_);
    }
  });
}

void AllToAllExperts::DecodeRows(const uint8_t* in, int64_t num_rows, float* x, bool add) {
  const int64_t hidden = groups_.row_size;
  pool_->ParallelFor(num_rows, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(add ? hidden : 0));
    for (int64_t i = begin; i < end; ++i) {
      float* const out = x + i * hidden;
      comm::Decode(codec_, groups_, in + i * row_bytes_, 0, groups_.groups_per_row(),
                   add ? row.data() : out, isa_);
      for (size_t c = 0; c < row.size(); ++c) out[c] += row[c];
    }
  });
}

absl::Status AllToAllExperts::ReduceScatter(int64_t num_tokens, float* x, comm::Deadline deadline) {
  const int64_t hidden = groups_.row_size;
  const int64_t first = FirstToken(num_tokens, rank());
  const int64_t own = FirstToken(num_tokens, rank() + 1) - first;
  Messages out(static_cast<size_t>(size()));
  Messages in(static_cast<size_t>(size()));
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const int64_t begin = FirstToken(num_tokens, peer);
    const int64_t count = FirstToken(num_tokens, peer + 1) - begin;
    auto& message = out[static_cast<size_t>(peer)];
    message = AlignedBuffer<uint8_t>(static_cast<size_t>(count * row_bytes_));
    EncodeRows(
        count, [&](int64_t i) { return x + (begin + i) * hidden; }, message.data());
    in[static_cast<size_t>(peer)] = AlignedBuffer<uint8_t>(static_cast<size_t>(own * row_bytes_));
  }
  NIBBLE_RETURN_IF_ERROR(Exchange(out, &in, deadline));
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    DecodeRows(in[static_cast<size_t>(peer)].data(), own, x + first * hidden, true);
  }
  return absl::OkStatus();
}

absl::Status AllToAllExperts::ExchangeCounts(comm::Deadline deadline) {
  Messages counts(static_cast<size_t>(size()));
  Messages in_counts(static_cast<size_t>(size()));
  for (size_t peer = 0; peer < counts.size(); ++peer) {
    counts[peer] = AlignedBuffer<uint8_t>(sizeof(int64_t));
    in_counts[peer] = AlignedBuffer<uint8_t>(sizeof(int64_t));
    const auto count = static_cast<int64_t>(sent_[peer].size());
    std::memcpy(counts[peer].data(), &count, sizeof count);
  }
  NIBBLE_RETURN_IF_ERROR(Exchange(counts, &in_counts, deadline));
  received_.assign(static_cast<size_t>(size()), 0);
  std::swap(in_counts[static_cast<size_t>(rank())], counts[static_cast<size_t>(rank())]);
  for (size_t peer = 0; peer < in_counts.size(); ++peer) {
    std::memcpy(&received_[peer], in_counts[peer].data(), sizeof(int64_t));
  }
  return absl::OkStatus();
}

absl::Status AllToAllExperts::Dispatch(const RoutedTokens& tokens, const float* x,
                                       comm::Deadline deadline) {
  const int64_t hidden = groups_.row_size;
  const int64_t k = tokens.num_experts_per_tok;
  const int64_t per_rank = tokens.num_experts / size();
  sent_.assign(static_cast<size_t>(size()), {});
  for (int64_t t = FirstToken(tokens.num_tokens, rank());
       t < FirstToken(tokens.num_tokens, rank() + 1); ++t) {
    for (int64_t j = 0; j < k; ++j) {
      sent_[static_cast<size_t>(tokens.expert_ids[t * k + j] / per_rank)].push_back({t, j});
    }
  }
  NIBBLE_RETURN_IF_ERROR(ExchangeCounts(deadline));

  Messages out(static_cast<size_t>(size()));
  Messages in(static_cast<size_t>(size()));
  for (size_t peer = 0; peer < out.size(); ++peer) {
    const auto count = static_cast<int64_t>(sent_[peer].size());
    const size_t id_bytes = PaddedIds(count);
    out[peer] = AlignedBuffer<uint8_t>::Zeroed(id_bytes + static_cast<size_t>(count * row_bytes_));
    for (int64_t i = 0; i < count; ++i) {
      const Row& row = sent_[peer][static_cast<size_t>(i)];
      std::memcpy(out[peer].data() + static_cast<size_t>(i) * kIdBytes,
                  tokens.expert_ids + row.token * k + row.j, kIdBytes);
    }
    EncodeRows(
        count, [&](int64_t i) { return x + sent_[peer][static_cast<size_t>(i)].token * hidden; },
        out[peer].data() + id_bytes);
    in[peer] = AlignedBuffer<uint8_t>(PaddedIds(received_[peer]) +
                                      static_cast<size_t>(received_[peer] * row_bytes_));
  }
  NIBBLE_RETURN_IF_ERROR(Exchange(out, &in, deadline));
  std::swap(in[static_cast<size_t>(rank())], out[static_cast<size_t>(rank())]);

  const auto total = std::accumulate(received_.begin(), received_.end(), int64_t{0});
  experts_of_received_.resize(static_cast<size_t>(total));
  received_rows_.resize(static_cast<size_t>(total * hidden));
  int64_t row = 0;
  for (size_t peer = 0; peer < in.size(); ++peer) {
    const int64_t count = received_[peer];
    if (count == 0) continue;
    std::memcpy(experts_of_received_.data() + row, in[peer].data(),
                static_cast<size_t>(count) * kIdBytes);
    DecodeRows(in[peer].data() + PaddedIds(count), count, received_rows_.data() + row * hidden,
               false);
    row += count;
  }
  return absl::OkStatus();
}

absl::Status AllToAllExperts::Return(const RoutedTokens& tokens, float* x,
                                     comm::Deadline deadline) {
  const int64_t hidden = groups_.row_size;
  Messages out(static_cast<size_t>(size()));
  Messages in(static_cast<size_t>(size()));
  int64_t first = 0;
  for (size_t peer = 0; peer < out.size(); ++peer) {
    out[peer] = AlignedBuffer<uint8_t>(static_cast<size_t>(received_[peer] * row_bytes_));
    EncodeRows(
        received_[peer], [&](int64_t i) { return received_rows_.data() + (first + i) * hidden; },
        out[peer].data());
    first += received_[peer];
    in[peer] = AlignedBuffer<uint8_t>(sent_[peer].size() * static_cast<size_t>(row_bytes_));
  }
  NIBBLE_RETURN_IF_ERROR(Exchange(out, &in, deadline));
  std::swap(in[static_cast<size_t>(rank())], out[static_cast<size_t>(rank())]);

  for (int64_t t = FirstToken(tokens.num_tokens, rank());
       t < FirstToken(tokens.num_tokens, rank() + 1); ++t) {
    std::fill_n(x + t * hidden, hidden, 0.0F);
  }
  std::vector<float> rows;
  for (size_t peer = 0; peer < in.size(); ++peer) {
    const std::vector<Row>& sent = sent_[peer];
    rows.resize(sent.size() * static_cast<size_t>(hidden));
    DecodeRows(in[peer].data(), static_cast<int64_t>(sent.size()), rows.data(), false);
    for (size_t i = 0; i < sent.size(); ++i) {
      const float weight = tokens.weights[sent[i].token * tokens.num_experts_per_tok + sent[i].j];
      const float* const y = rows.data() + i * static_cast<size_t>(hidden);
      float* const sum = x + sent[i].token * hidden;
      for (int64_t c = 0; c < hidden; ++c) sum[c] += weight * y[c];
    }
  }
  return absl::OkStatus();
}

absl::Status AllToAllExperts::AllGather(int64_t num_tokens, float* x, comm::Deadline deadline) {
  const int64_t hidden = groups_.row_size;
  const auto count_of = [&](int peer) {
    return FirstToken(num_tokens, peer + 1) - FirstToken(num_tokens, peer);
  };
  float* const own = x + FirstToken(num_tokens, rank()) * hidden;
  Messages out(static_cast<size_t>(size()));
  Messages in(static_cast<size_t>(size()));
  AlignedBuffer<uint8_t> coded(static_cast<size_t>(count_of(rank()) * row_bytes_));
  EncodeRows(
      count_of(rank()), [&](int64_t i) { return own + i * hidden; }, coded.data());
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    auto& message = out[static_cast<size_t>(peer)];
    message = AlignedBuffer<uint8_t>(coded.size());
    std::copy_n(coded.data(), coded.size(), message.data());
    in[static_cast<size_t>(peer)] =
        AlignedBuffer<uint8_t>(static_cast<size_t>(count_of(peer) * row_bytes_));
  }
  NIBBLE_RETURN_IF_ERROR(Exchange(out, &in, deadline));
  // All ranks have the same bits: the owner too takes what its codes say.
  std::swap(in[static_cast<size_t>(rank())], coded);
  for (int peer = 0; peer < size(); ++peer) {
    DecodeRows(in[static_cast<size_t>(peer)].data(), count_of(peer),
               x + FirstToken(num_tokens, peer) * hidden, false);
  }
  return absl::OkStatus();
}

}  // namespace nibble::bench
