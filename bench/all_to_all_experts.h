// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The exchanges of a mixture-of-experts layer with token-sharded experts, as most systems have
// them: what the PPMoE layout is measured against, and nothing a server uses. Rank r of N has
// tokens [r * T / N, (r + 1) * T / N) and experts [r * E / N, (r + 1) * E / N):
//
//   reduce-scatter   sums attention's partial outputs of the rank's own tokens
//   all-to-all       counts, then a row for each (token, expert) to the expert's rank
//   (the experts)
//   all-to-all       the rows back; the token's rank weights and sums them
//   all-gather       all tokens to all ranks, for the next attention
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/codec/codec.h"
#include "comm/deadline.h"
#include "comm/transport.h"

namespace nibble::bench {

// Which experts tokens go to; a rank reads its own tokens' only.
struct RoutedTokens {
  int64_t num_tokens = 0;
  int64_t num_experts = 0;  // a multiple of the ranks
  int64_t num_experts_per_tok = 0;
  const int32_t* expert_ids = nullptr;  // [num_tokens, k]
  const float* weights = nullptr;       // [num_tokens, k]
};

class AllToAllExperts {
 public:
  // In place: row i of `rows` [num_rows, hidden] is for expert experts[i], one of this rank's.
  using Experts =
      std::function<void(const std::vector<int32_t>& experts, float* rows, int64_t num_rows)>;

  // All rows travel by `codec`.
  AllToAllExperts(comm::Transport* transport, const comm::CodecDesc& codec, int64_t hidden, Isa isa,
                  ThreadPool* pool);

  // `x` [num_tokens, hidden] has this rank's part of attention's sums, and afterwards every token's
  // weighted sum of experts. All ranks call it with the same tokens.
  absl::Status Run(const RoutedTokens& tokens, const Experts& experts, float* x,
                   comm::Deadline deadline);

  int64_t bytes_sent() const { return bytes_sent_; }  // of all runs

 private:
  // A row on its way: the token's j-th expert.
  struct Row {
    int64_t token;
    int64_t j;
  };
  using Messages = std::vector<AlignedBuffer<uint8_t>>;  // by rank; the own one is empty

  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }
  int64_t FirstToken(int64_t num_tokens, int rank) const { return num_tokens * rank / size(); }
  // Sends out[p] to each rank p, and fills in[p], whose sizes are known, from it.
  absl::Status Exchange(const Messages& out, Messages* in, comm::Deadline deadline);
  // source(i) is row i of `num_rows`.
  template <typename Source>
  void EncodeRows(int64_t num_rows, const Source& source, uint8_t* out);
  void DecodeRows(const uint8_t* in, int64_t num_rows, float* x, bool add);

  absl::Status ReduceScatter(int64_t num_tokens, float* x, comm::Deadline deadline);
  // Fills received_: how many rows come is not known before their senders say so.
  absl::Status ExchangeCounts(comm::Deadline deadline);
  absl::Status Dispatch(const RoutedTokens& tokens, const float* x, comm::Deadline deadline);
  absl::Status Return(const RoutedTokens& tokens, float* x, comm::Deadline deadline);
  absl::Status AllGather(int64_t num_tokens, float* x, comm::Deadline deadline);

  comm::Transport* const transport_;
  const comm::CodecDesc codec_;
  const comm::RowGroups groups_;
  const int64_t row_bytes_;  // of a coded row
  const Isa isa_;
  ThreadPool* const pool_;
  uint64_t exchange_ = 0;
  int64_t bytes_sent_ = 0;

  std::vector<std::vector<Row>> sent_;        // by rank: what its experts got from here
  std::vector<int64_t> received_;             // by rank: rows that came from it
  std::vector<int32_t> experts_of_received_;  // of all of them, by rank
  std::vector<float> received_rows_;          // the same, [rows, hidden]
};

}  // namespace nibble::bench
