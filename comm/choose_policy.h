// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which algorithm and codec a message takes: by rule, or by what candidates took. All of it is pure
// and knows no clock; measure_policy.h lets a group run the candidates.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/all_reduce.h"

namespace nibble::comm {

// One codec for every size, of ranks that share memory.
AllReducePolicy HostPolicy(const CodecDesc& codec, int num_ranks);
// The same of ranks (of hosts, when they have several) that a network connects.
AllReducePolicy NetworkPolicy(const CodecDesc& codec, int num_ranks);

// What `options` say when nothing was measured; kAuto is taken as kNone.
AllReducePolicy UnmeasuredPolicy(const AllReduceOptions& options, int num_hosts, int num_ranks);

// What was measured for one size: seconds of each candidate, in ChoosePolicy's `candidates` order;
// infinite when it was not tried.
struct SizeTimes {
  int64_t message_bytes = 0;
  std::vector<double> seconds;
};

// bf16, int8, int6, int5 and int4, each one-shot and two-shot; wider codecs first.
std::vector<AllReduceChoice> MeasuredCandidates(const CodecDesc& codec);
// The widest codec that is nearly as fast as the fastest candidate, and the one of the size before
// where it is: noise flips no choice, and bits are given up for speed alone. Between two sizes the
// nearer one's choice holds, above the last one that codec's two-shot: however large a message is,
// nobody sends it whole to everybody. REQUIRES rising sizes, and one at which something was tried.
AllReducePolicy ChoosePolicy(const std::vector<AllReduceChoice>& candidates,
                             const std::vector<SizeTimes>& sizes);

// Which candidates are tried at which sizes until enough is known for a choice.
//
//   while (search.Next(seconds_left).message_bytes > 0) { ... search.Add(times); }
//   search.Choose();
//
// Sizes double. A candidate that cannot win at larger sizes any more is not tried again, because
// the time is better spent on telling the others apart; of two-shot one always is left.
class PolicySearch {
 public:
  struct Trial {
    int64_t message_bytes = 0;  // 0: enough is known
    uint64_t candidates = 0;    // bit i: candidate i is tried
  };

  static constexpr int64_t kMaxRuns = 15;  // of a candidate at a size

  // `codec`: as MeasuredCandidates' own. REQUIRES min_bytes of
  // 1 KiB or more.
  PolicySearch(const CodecDesc& codec, int64_t min_bytes, int64_t max_bytes);

  const std::vector<AllReduceChoice>& candidates() const { return candidates_; }
  const std::vector<SizeTimes>& sizes() const { return sizes_; }

  // The first size whatever time is left; no later one that is expected to take longer.
  Trial Next(double seconds_left) const;
  // How many more runs of each candidate a size deserves after one of each; 0 when there is no time
  // for enough of them to be worth it.
  static int64_t MoreRuns(const SizeTimes& once, double seconds_left);
  // What Next's trial took.
  void Add(SizeTimes times);

  // REQUIRES a size.
  AllReducePolicy Choose() const { return ChoosePolicy(candidates_, sizes_); }

 private:
  void DropLosers();
  bool Settled() const;

  const std::vector<AllReduceChoice> candidates_;
  const int64_t min_bytes_;
  const int64_t max_bytes_;
  uint64_t tried_;  // bits: these were tried at every size up to now
  std::vector<SizeTimes> sizes_;
};

}  // namespace nibble::comm
