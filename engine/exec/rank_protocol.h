// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a driver (RankGroup) and a rank (RankServer) say to each other. Payloads are flat and
// checked when read; the hub between them does not look inside.
//
//   driver -> rank                            rank -> driver
//   kHello: who are you?                      kProgress {bytes done, of}   while it loads
//                                             kLoaded {what the model needs}
//   kAllocate {blocks, limits}                kAllocated
//   kPrepare {place in the group}             kPrepared {address}
//   kConnect {addresses, all-reduce}          kConnected {policy}
//   kStep {generation, number, plan}          kStepDone {number, output | error}
//   kStepPart {bytes of the next kStep}
//   kAbort {generation, reason}
//   kPing                                     kPong {what it is at}
//   kTellExpertLoad                           kExpertLoad {tokens of each expert}
//   kExit                                     kFailed {status}
//
// A rank says kLoaded once for every kHello, as soon as it has loaded: a driver may find a rank
// whose weights are there already. kAllocate of the sizes that a rank has changes nothing. Prepare,
// Connect and Step belong to a generation; what cannot be done for it is kGenerationFailed, and the
// rank stays good for the next one. A rank computes its steps in the order in which they come, and
// more may come meanwhile. After a step rank 0 of the last stage answers; others speak only when it
// failed.
// A step that is larger than a frame may be comes in parts, the last of which is its kStep. A kPong
// says what the thread that computes is at, so that a driver can tell a long step from a wait that
// will never end. kAbort makes a rank leave the generation and keep weights and KV memory. kFailed
// is final.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "comm/group.h"
#include "comm/ranks/rank_hub.h"
#include "engine/exec/local_executor_options.h"
#include "engine/moe/expert_load.h"
#include "engine/scheduler/step_plan.h"

namespace nibble::engine {

enum class RankMessage : uint32_t {
  kLoaded = 1,
  kAllocated,
  kPrepared,
  kConnected,
  kStepDone,
  kFailed,
  kPong,
  kProgress,
  kGenerationFailed,
  kExpertLoad,
  kAllocate = 101,
  kPrepare,
  kConnect,
  kStep,
  kAbort,
  kPing,
  kExit,
  kHello,
  kStepPart,
  kTellExpertLoad,
};

// Driver and rank are of one build; another one's is refused by this number before anything else of
// a kLoaded is read.
inline constexpr uint32_t kRankProtocolVersion = 5;
inline constexpr int kMaxRanks = 1024;
// Of a sentence: why a status is an error, why a generation ended. What is longer is cut.
inline constexpr uint32_t kMaxTextBytes = 4096;

enum class RankPhase : uint32_t {
  kIdle,        // waits for the driver
  kComputing,   // or loads, or joins
  kCollective,  // exchanges with the other ranks of its stage, or waits for them
  kReceiving,   // waits for the stage before it
  kSending,     // waits for the stage after it to take what it has
};

// What the thread of a rank that computes is at.
struct RankActivity {
  uint64_t generation = 0;  // joined; 0: none
  uint64_t changes = 0;     // counts begins and ends: a rank with the same number has not got on
  uint64_t operation = 0;   // collectives begun since the process started
  uint64_t bytes = 0;       // of the one it is in, or of the message it waits for; about
  uint64_t sent = 0;        // messages given to the next stage in this generation
  uint64_t received = 0;    // messages taken from the previous stage in this generation
  RankPhase phase = RankPhase::kComputing;

  friend bool operator==(const RankActivity&, const RankActivity&) = default;
};

// What a rank tells when its weights are loaded.
struct RankDescription {
  int64_t weight_bytes = 0;
  int64_t kv_block_bytes = 0;  // of one block of LocalExecutorOptions::block_size tokens
  // KvMemory, once the largest step's memory is taken: of its host, or of a device of its own.
  int64_t available_bytes = 0;
  bool memory_is_own = false;
  int64_t total_bytes = 0;  // KvMemory's
  // Of the largest step: what one token, one sequence less would leave for the cache.
  int64_t step_token_bytes = 0;
  int64_t step_seq_bytes = 0;
  int32_t kv_dtype = 0;     // DType
  int64_t num_layers = 0;   // of the whole model, as the next
  int64_t num_experts = 0;  // of a layer; 0: a dense model
  std::string quantization_name;
  std::string device_name;  // Model::device_name()
  std::vector<std::string> warnings;
};

// Every payload: Encode, and Decode of any bytes to a value within the limits named in it or
// INVALID_ARGUMENT naming field, value and limit.

struct LoadedPayload {
  static constexpr RankMessage kType = RankMessage::kLoaded;
  int32_t rank = 0;         // RankPlace::world_rank(), below `size`
  int32_t size = 1;         // RankPlace::world_size(), 1..kMaxRanks
  int32_t num_stages = 1;   // divides size
  int32_t expert_size = 1;  // divides the ranks of a stage
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  RankDescription description;

  std::string Encode() const;
  static absl::StatusOr<LoadedPayload> Decode(std::string_view bytes);
};

struct AllocatePayload {
  static constexpr RankMessage kType = RankMessage::kAllocate;
  LocalExecutorOptions options;  // checked where memory is taken

  std::string Encode() const;
  static absl::StatusOr<AllocatePayload> Decode(std::string_view bytes);
};

struct PreparePayload {
  static constexpr RankMessage kType = RankMessage::kPrepare;
  comm::GroupPlace place;  // among all ranks of the model
  int32_t num_stages = 1;  // divides place.size()
  // Generations from this one up to place.generation may have left names in /dev/shm of this host.
  uint64_t clean_from = 0;

  std::string Encode() const;
  static absl::StatusOr<PreparePayload> Decode(std::string_view bytes);
};

struct PreparedPayload {
  static constexpr RankMessage kType = RankMessage::kPrepared;
  uint64_t generation = 0;
  std::string address;  // of its places in the group of its stage and between stages

  std::string Encode() const;
  static absl::StatusOr<PreparedPayload> Decode(std::string_view bytes);
};

struct ConnectPayload {
  static constexpr RankMessage kType = RankMessage::kConnect;
  uint64_t generation = 0;
  std::vector<std::string> addresses;  // by rank
  comm::AllReduceOptions all_reduce;
  std::string policy;  // of this rank's stage: comm::Serialize; empty: to be measured
  int64_t row_size = 0;
  std::chrono::milliseconds connect_timeout{30'000};  // > 0, as the next
  std::chrono::milliseconds operation_timeout{60'000};
  std::chrono::milliseconds message_timeout{60'000};  // between stages

  std::string Encode() const;
  static absl::StatusOr<ConnectPayload> Decode(std::string_view bytes);
};

struct ConnectedPayload {
  static constexpr RankMessage kType = RankMessage::kConnected;
  uint64_t generation = 0;
  std::string policy;  // of its stage, whose sums travel so: comm::Serialize

  std::string Encode() const;
  static absl::StatusOr<ConnectedPayload> Decode(std::string_view bytes);
};

struct StepPayload {
  static constexpr RankMessage kType = RankMessage::kStep;
  uint64_t generation = 0;
  uint64_t number = 0;
  StepPlan plan;

  std::string Encode() const { return Encode(generation, number, plan); }
  static std::string Encode(uint64_t generation, uint64_t number, const StepPlan& plan);
  static absl::StatusOr<StepPayload> Decode(std::string_view bytes);
};

// As few frames as hold the bytes of a StepPayload.
std::vector<comm::Frame> StepFrames(std::string step,
                                    size_t max_part_bytes = comm::Frame::kMaxPayloadBytes);

struct StepDonePayload {
  static constexpr RankMessage kType = RankMessage::kStepDone;
  uint64_t generation = 0;
  uint64_t number = 0;
  absl::Status status;
  StepOutput output;  // of rank 0 of the last stage, when status is OK

  std::string Encode() const;
  static absl::StatusOr<StepDonePayload> Decode(std::string_view bytes);
};

struct GenerationFailedPayload {
  static constexpr RankMessage kType = RankMessage::kGenerationFailed;
  uint64_t generation = 0;
  absl::Status status;  // not OK

  std::string Encode() const;
  static absl::StatusOr<GenerationFailedPayload> Decode(std::string_view bytes);
};

struct FailedPayload {
  static constexpr RankMessage kType = RankMessage::kFailed;
  absl::Status status;  // not OK

  std::string Encode() const;
  static absl::StatusOr<FailedPayload> Decode(std::string_view bytes);
};

struct AbortPayload {
  static constexpr RankMessage kType = RankMessage::kAbort;
  uint64_t generation = 0;
  std::string reason;

  std::string Encode() const;
  static absl::StatusOr<AbortPayload> Decode(std::string_view bytes);
};

struct PingPayload {
  static constexpr RankMessage kType = RankMessage::kPing;
  uint64_t number = 0;

  std::string Encode() const;
  static absl::StatusOr<PingPayload> Decode(std::string_view bytes);
};

struct PongPayload {
  static constexpr RankMessage kType = RankMessage::kPong;
  uint64_t number = 0;  // the ping's
  RankActivity activity;

  std::string Encode() const;
  static absl::StatusOr<PongPayload> Decode(std::string_view bytes);
};

// Of the first rank of a stage: counts since its process started, zeros for other stages' layers.
struct ExpertLoadPayload {
  static constexpr RankMessage kType = RankMessage::kExpertLoad;
  static constexpr int64_t kMaxLayers = 1 << 12;
  static constexpr int64_t kMaxExperts = 1 << 14;
  uint64_t process = 0;  // random: another number means that it counts from zero
  ExpertLoad load;

  std::string Encode() const;
  static absl::StatusOr<ExpertLoadPayload> Decode(std::string_view bytes);
};

struct ProgressPayload {
  static constexpr RankMessage kType = RankMessage::kProgress;
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;

  std::string Encode() const;
  static absl::StatusOr<ProgressPayload> Decode(std::string_view bytes);
};

inline comm::Frame MakeFrame(RankMessage type, std::string payload = {}) {
  return {.type = static_cast<uint32_t>(type), .payload = std::move(payload)};
}
template <typename Payload>
comm::Frame MakeFrame(const Payload& payload) {
  return MakeFrame(Payload::kType, payload.Encode());
}

}  // namespace nibble::engine
