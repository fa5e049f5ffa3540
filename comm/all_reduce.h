// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How the sums of a group travel: what --all-reduce and its companions say, and what was chosen for
// a size.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "comm/codec/codec.h"

namespace nibble::comm {

// The request. Ranks of one host exchange float32 through shared memory unless a width is asked for
// by name; between hosts `none` sends bf16, the 16 bits that activations have elsewhere.
struct AllReduceOptions {
  enum class Mode {
    kAuto,   // per message size what was measured to be fastest among none, int8, int6, int5 and
             // int4. As it goes by size, a row may be coded otherwise when it is computed
             // again in another batch (a recomputed prefill, say): its bits then differ
    kFixed,  // always `codec`: a row's bits do not depend on the batch
    kNone,   // uncompressed: float32 through shared memory, bf16 over a network
  };
  Mode mode = Mode::kAuto;
  CodecDesc codec;  // kFixed; for kAuto its group size, scale format, spikes and rotation count

  friend bool operator==(const AllReduceOptions&, const AllReduceOptions&) = default;
};

// "auto", "none", "float32", "bf16", "int8", "int6", "int5", "int4", "int3", "int2";
// INVALID_ARGUMENT naming them for another. Only mode and bits are set.
absl::StatusOr<AllReduceOptions> ParseAllReduce(std::string_view name);

enum class Algorithm {
  kOneShot,  // everyone sends all to everyone and sums: one step, for small messages
  kTwoShot,  // reduce-scatter, all-gather by direct exchange; integer codes make it the Flash
             // all-reduce
};

// "one-shot", "two-shot".
std::string_view ToString(Algorithm algorithm);

// What a message of up to so many bytes takes.
struct AllReduceChoice {
  int64_t max_bytes =
      0;  // of the message as bf16: num_rows * row_size * 2; the last one: INT64_MAX
  Algorithm algorithm = Algorithm::kTwoShot;
  CodecDesc codec;  // float32 and bf16 included

  friend bool operator==(const AllReduceChoice&, const AllReduceChoice&) = default;
};

// Total over all sizes: rising max_bytes, the last is INT64_MAX. The same on every rank.
struct AllReducePolicy {
  std::vector<AllReduceChoice> choices;

  const AllReduceChoice& For(int64_t message_bytes) const;
  // INVALID_ARGUMENT unless total, rising and of valid codecs: policies come out of files and
  // messages.
  absl::Status Validate() const;
};

// One line a choice: "up to 64 KiB: one-shot float32; up to 1 MiB: ...".
std::string ToString(const AllReducePolicy& policy);
// A flat text form that ParsePolicy reads back: what ranks are told and the cache file holds.
std::string Serialize(const AllReducePolicy& policy);
inline constexpr int64_t kMaxPolicyText = 8192;  // bytes
absl::StatusOr<AllReducePolicy> ParsePolicy(std::string_view text);

}  // namespace nibble::comm
