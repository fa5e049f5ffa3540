// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a driver says.

#include "engine/exec/flat_bytes.h"
#include "engine/exec/rank_protocol.h"
#include "engine/exec/rank_protocol_fields.h"
#include "engine/exec/step_codec.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxTimeoutMs = int64_t{24} * 3600 * 1000;

struct Options {
  int64_t block_size = 0;
  int64_t num_blocks = 0;
  int64_t max_model_len = 0;
  int64_t max_num_batched_tokens = 0;
  int64_t max_num_seqs = 0;
};

// comm::AllReduceOptions without padding.
struct AllReduceWire {
  int32_t mode = 0;
  int32_t bits = 0;
  int32_t group_size = 0;
  int32_t scale = 0;
  int32_t spikes = 0;
  int32_t rotation = 0;
};

}  // namespace

std::string AllocatePayload::Encode() const {
  FlatWriter writer(sizeof(Options));
  writer.Put(Options{.block_size = options.block_size,
                     .num_blocks = options.num_blocks,
                     .max_model_len = options.max_model_len,
                     .max_num_batched_tokens = options.max_num_batched_tokens,
                     .max_num_seqs = options.max_num_seqs});
  return std::move(writer).Finish();
}

absl::StatusOr<AllocatePayload> AllocatePayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kAllocate");
  Options options;
  reader.Read("options", &options);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return AllocatePayload{.options = {.block_size = options.block_size,
                                     .num_blocks = options.num_blocks,
                                     .max_model_len = options.max_model_len,
                                     .max_num_batched_tokens = options.max_num_batched_tokens,
                                     .max_num_seqs = options.max_num_seqs}};
}

std::string PreparePayload::Encode() const {
  FlatWriter writer(128);
  writer.Put<int32_t>(place.rank);
  writer.PutArray(place.node_of_rank);
  writer.PutString(place.group_id);
  writer.Put(place.generation);
  writer.PutString(place.bind_address);
  writer.Put(num_stages);
  writer.Put(clean_from);
  return std::move(writer).Finish();
}

absl::StatusOr<PreparePayload> PreparePayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kPrepare");
  PreparePayload payload;
  int32_t rank = 0;
  reader.Read("rank", &rank);
  reader.ReadArray("node_of_rank", &payload.place.node_of_rank);
  reader.ReadString("group_id", &payload.place.group_id);
  reader.Read("generation", &payload.place.generation);
  reader.ReadString("bind_address", &payload.place.bind_address);
  reader.Read("num_stages", &payload.num_stages);
  reader.Read("clean_from", &payload.clean_from);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  const int size = payload.place.size();
  NIBBLE_RETURN_IF_ERROR(CheckRange("kPrepare: the number of ranks", size, 1, kMaxRanks));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kPrepare: rank", rank, 0, size - 1));
  NIBBLE_RETURN_IF_ERROR(CheckDivides("kPrepare: num_stages", payload.num_stages, size));
  payload.place.rank = rank;
  return payload;
}

std::string ConnectPayload::Encode() const {
  FlatWriter writer(1024);
  writer.Put(generation);
  PutStrings(addresses, &writer);
  writer.Put(AllReduceWire{.mode = static_cast<int32_t>(all_reduce.mode),
                           .bits = all_reduce.codec.bits,
                           .group_size = all_reduce.codec.group_size,
                           .scale = static_cast<int32_t>(all_reduce.codec.scale),
                           .spikes = all_reduce.codec.spikes ? 1 : 0,
                           .rotation = all_reduce.codec.rotation ? 1 : 0});
  writer.PutString(policy);
  writer.Put(row_size);
  writer.Put<int64_t>(connect_timeout.count());
  writer.Put<int64_t>(operation_timeout.count());
  writer.Put<int64_t>(message_timeout.count());
  return std::move(writer).Finish();
}

absl::StatusOr<ConnectPayload> ConnectPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kConnect");
  ConnectPayload payload;
  AllReduceWire wire;
  int64_t connect_ms = 0;
  int64_t operation_ms = 0;
  int64_t message_ms = 0;
  reader.Read("generation", &payload.generation);
  ReadStrings("addresses", kMaxRanks, kMaxAddressBytes, &reader, &payload.addresses);
  reader.Read("all_reduce", &wire);
  reader.ReadString("policy", &payload.policy, kMaxPolicyBytes);
  reader.Read("row_size", &payload.row_size);
  reader.Read("connect_timeout", &connect_ms);
  reader.Read("operation_timeout", &operation_ms);
  reader.Read("message_timeout", &message_ms);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_RETURN_IF_ERROR(CheckRange("kConnect: the number of addresses",
                                    static_cast<int64_t>(payload.addresses.size()), 1, kMaxRanks));
  using Mode = comm::AllReduceOptions::Mode;
  NIBBLE_RETURN_IF_ERROR(
      CheckRange("kConnect: mode", wire.mode, 0, static_cast<int32_t>(Mode::kNone)));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kConnect: scale format", wire.scale, 0,
                                    static_cast<int32_t>(comm::ScaleFormat::kLog2Int8)));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kConnect: spikes", wire.spikes, 0, 1));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kConnect: rotation", wire.rotation, 0, 1));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kConnect: connect_timeout", connect_ms, 1, kMaxTimeoutMs));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kConnect: operation_timeout", operation_ms, 1, kMaxTimeoutMs));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kConnect: message_timeout", message_ms, 1, kMaxTimeoutMs));
  // Widths and group sizes: comm::Validate, when the group is joined.
  payload.all_reduce = {.mode = static_cast<Mode>(wire.mode),
                        .codec = {.bits = wire.bits,
                                  .group_size = wire.group_size,
                                  .scale = static_cast<comm::ScaleFormat>(wire.scale),
                                  .spikes = wire.spikes == 1,
                                  .rotation = wire.rotation == 1}};
  payload.connect_timeout = std::chrono::milliseconds(connect_ms);
  payload.operation_timeout = std::chrono::milliseconds(operation_ms);
  payload.message_timeout = std::chrono::milliseconds(message_ms);
  return payload;
}

std::string StepPayload::Encode(uint64_t generation, uint64_t number, const StepPlan& plan) {
  const std::string bytes = EncodePlan(plan);
  FlatWriter writer(sizeof(GenerationAndNumber) + bytes.size());
  writer.Put(GenerationAndNumber{generation, number});
  writer.PutRest(bytes);
  return std::move(writer).Finish();
}

absl::StatusOr<StepPayload> StepPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kStep");
  GenerationAndNumber head;
  reader.Read("generation and number", &head);
  const std::string_view plan_bytes = reader.ReadRest();
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_ASSIGN_OR_RETURN(StepPlan plan, DecodePlan(plan_bytes));
  return StepPayload{.generation = head.generation, .number = head.number, .plan = std::move(plan)};
}

std::vector<comm::Frame> StepFrames(std::string step, size_t max_part_bytes) {
  std::vector<comm::Frame> frames;
  size_t begin = 0;
  for (; step.size() - begin > max_part_bytes; begin += max_part_bytes) {
    frames.push_back(MakeFrame(RankMessage::kStepPart, step.substr(begin, max_part_bytes)));
  }
  if (begin > 0) step.erase(0, begin);
  frames.push_back(MakeFrame(RankMessage::kStep, std::move(step)));
  return frames;
}

std::string AbortPayload::Encode() const {
  FlatWriter writer(16 + reason.size());
  writer.Put(generation);
  writer.PutString(Shortened(reason));
  return std::move(writer).Finish();
}

absl::StatusOr<AbortPayload> AbortPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kAbort");
  AbortPayload payload;
  reader.Read("generation", &payload.generation);
  reader.ReadString("reason", &payload.reason, kMaxTextBytes);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return payload;
}

std::string PingPayload::Encode() const {
  FlatWriter writer(sizeof(number));
  writer.Put(number);
  return std::move(writer).Finish();
}

absl::StatusOr<PingPayload> PingPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kPing");
  PingPayload payload;
  reader.Read("number", &payload.number);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return payload;
}

}  // namespace nibble::engine
