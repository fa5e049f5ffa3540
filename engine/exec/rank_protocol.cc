// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/rank_protocol.h"

#include "engine/exec/flat_bytes.h"
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

struct GenerationAndNumber {
  uint64_t generation = 0;
  uint64_t number = 0;
};

void PutStrings(const std::vector<std::string>& strings, FlatWriter* writer) {
  writer->Put(static_cast<uint32_t>(strings.size()));
  for (const std::string& text : strings) writer->PutString(text);
}

void ReadStrings(const char* field, FlatReader* reader, std::vector<std::string>* strings) {
  const uint32_t count = reader->ReadCount(field);
  // Every string has a count of its own.
  reader->CheckAtMost(field, count, reader->num_left() / sizeof(uint32_t));
  if (reader->ok()) strings->resize(count);
  for (std::string& text : *strings) reader->ReadString(field, &text);
}

void PutStatus(const absl::Status& status, FlatWriter* writer) {
  writer->Put(static_cast<uint32_t>(status.code()));
  writer->PutString(std::string(status.message()));
}

void ReadStatus(FlatReader* reader, absl::Status* status) {
  uint32_t code = 0;
  std::string message;
  reader->Read("status code", &code);
  reader->CheckAtMost("status code", code,
                      static_cast<uint32_t>(absl::StatusCode::kUnauthenticated));
  reader->ReadString("status message", &message);
  if (reader->ok()) *status = absl::Status(static_cast<absl::StatusCode>(code), message);
}

absl::Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgument("{} is {}, the limits are {} and {}", field, value, low, high);
}

absl::Status CheckIsError(const absl::Status& status, const char* what) {
  return status.ok() ? InvalidArgument("{}: the status is OK, want an error", what)
                     : absl::OkStatus();
}

}  // namespace

std::string LoadedPayload::Encode() const {
  FlatWriter writer(256);
  writer.Put(kRankProtocolVersion);
  writer.Put(rank);
  writer.Put(size);
  writer.Put(vocab_size);
  writer.Put(hidden_size);
  writer.Put(description.weight_bytes);
  writer.Put(description.kv_block_bytes);
  writer.Put(description.available_bytes);
  writer.Put(description.kv_dtype);
  writer.PutString(description.quantization_name);
  PutStrings(description.warnings, &writer);
  return std::move(writer).Finish();
}

absl::StatusOr<LoadedPayload> LoadedPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kLoaded");
  uint32_t version = 0;
  reader.Read("version", &version);
  if (reader.ok() && version != kRankProtocolVersion) {
    return InvalidArgument("the rank speaks version {} of the rank protocol, this is version {}",
                           version, kRankProtocolVersion);
  }
  LoadedPayload payload;
  reader.Read("rank", &payload.rank);
  reader.Read("size", &payload.size);
  reader.Read("vocab_size", &payload.vocab_size);
  reader.Read("hidden_size", &payload.hidden_size);
  RankDescription& description = payload.description;
  reader.Read("weight_bytes", &description.weight_bytes);
  reader.Read("kv_block_bytes", &description.kv_block_bytes);
  reader.Read("available_bytes", &description.available_bytes);
  reader.Read("kv_dtype", &description.kv_dtype);
  reader.ReadString("quantization_name", &description.quantization_name);
  ReadStrings("warnings", &reader, &description.warnings);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_RETURN_IF_ERROR(CheckRange("kLoaded: size", payload.size, 1, kMaxRanks));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kLoaded: rank", payload.rank, 0, payload.size - 1));
  return payload;
}

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
  reader.Read("clean_from", &payload.clean_from);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  const int size = payload.place.size();
  NIBBLE_RETURN_IF_ERROR(CheckRange("kPrepare: the number of ranks", size, 1, kMaxRanks));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kPrepare: rank", rank, 0, size - 1));
  payload.place.rank = rank;
  return payload;
}

std::string PreparedPayload::Encode() const {
  FlatWriter writer(16 + address.size());
  writer.Put(generation);
  writer.PutString(address);
  return std::move(writer).Finish();
}

absl::StatusOr<PreparedPayload> PreparedPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kPrepared");
  PreparedPayload payload;
  reader.Read("generation", &payload.generation);
  reader.ReadString("address", &payload.address);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
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
  return std::move(writer).Finish();
}

absl::StatusOr<ConnectPayload> ConnectPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kConnect");
  ConnectPayload payload;
  AllReduceWire wire;
  int64_t connect_ms = 0;
  int64_t operation_ms = 0;
  reader.Read("generation", &payload.generation);
  ReadStrings("addresses", &reader, &payload.addresses);
  reader.Read("all_reduce", &wire);
  reader.ReadString("policy", &payload.policy);
  reader.Read("row_size", &payload.row_size);
  reader.Read("connect_timeout", &connect_ms);
  reader.Read("operation_timeout", &operation_ms);
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
  // Widths and group sizes: comm::Validate, when the group is joined.
  payload.all_reduce = {.mode = static_cast<Mode>(wire.mode),
                        .codec = {.bits = wire.bits,
                                  .group_size = wire.group_size,
                                  .scale = static_cast<comm::ScaleFormat>(wire.scale),
                                  .spikes = wire.spikes == 1,
                                  .rotation = wire.rotation == 1}};
  payload.connect_timeout = std::chrono::milliseconds(connect_ms);
  payload.operation_timeout = std::chrono::milliseconds(operation_ms);
  return payload;
}

std::string ConnectedPayload::Encode() const {
  FlatWriter writer(16 + policy.size());
  writer.Put(generation);
  writer.PutString(policy);
  return std::move(writer).Finish();
}

absl::StatusOr<ConnectedPayload> ConnectedPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kConnected");
  ConnectedPayload payload;
  reader.Read("generation", &payload.generation);
  reader.ReadString("policy", &payload.policy);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
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

std::string StepDonePayload::Encode() const {
  const std::string bytes = EncodeOutput(output);
  FlatWriter writer(sizeof(GenerationAndNumber) + 8 + status.message().size() + bytes.size());
  writer.Put(GenerationAndNumber{generation, number});
  PutStatus(status, &writer);
  writer.PutRest(bytes);
  return std::move(writer).Finish();
}

absl::StatusOr<StepDonePayload> StepDonePayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kStepDone");
  GenerationAndNumber head;
  StepDonePayload payload;
  reader.Read("generation and number", &head);
  payload.generation = head.generation;
  payload.number = head.number;
  ReadStatus(&reader, &payload.status);
  const std::string_view output_bytes = reader.ReadRest();
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_ASSIGN_OR_RETURN(payload.output, DecodeOutput(output_bytes));
  return payload;
}

std::string GenerationFailedPayload::Encode() const {
  FlatWriter writer(16 + status.message().size());
  writer.Put(generation);
  PutStatus(status, &writer);
  return std::move(writer).Finish();
}

absl::StatusOr<GenerationFailedPayload> GenerationFailedPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kGenerationFailed");
  GenerationFailedPayload payload;
  reader.Read("generation", &payload.generation);
  ReadStatus(&reader, &payload.status);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_RETURN_IF_ERROR(CheckIsError(payload.status, "kGenerationFailed"));
  return payload;
}

std::string FailedPayload::Encode() const {
  FlatWriter writer(8 + status.message().size());
  PutStatus(status, &writer);
  return std::move(writer).Finish();
}

absl::StatusOr<FailedPayload> FailedPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kFailed");
  FailedPayload payload;
  ReadStatus(&reader, &payload.status);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_RETURN_IF_ERROR(CheckIsError(payload.status, "kFailed"));
  return payload;
}

std::string AbortPayload::Encode() const {
  FlatWriter writer(16 + reason.size());
  writer.Put(generation);
  writer.PutString(reason);
  return std::move(writer).Finish();
}

absl::StatusOr<AbortPayload> AbortPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kAbort");
  AbortPayload payload;
  reader.Read("generation", &payload.generation);
  reader.ReadString("reason", &payload.reason);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return payload;
}

std::string PingPayload::Encode() const {
  FlatWriter writer(sizeof(number));
  writer.Put(number);
  return std::move(writer).Finish();
}

absl::StatusOr<PingPayload> PingPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kPing or kPong");
  PingPayload payload;
  reader.Read("number", &payload.number);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return payload;
}

std::string ProgressPayload::Encode() const {
  FlatWriter writer(16);
  writer.Put(bytes_done);
  writer.Put(bytes_total);
  return std::move(writer).Finish();
}

absl::StatusOr<ProgressPayload> ProgressPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kProgress");
  ProgressPayload payload;
  reader.Read("bytes_done", &payload.bytes_done);
  reader.Read("bytes_total", &payload.bytes_total);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_RETURN_IF_ERROR(
      CheckRange("kProgress: bytes_total", payload.bytes_total, 0, int64_t{1} << 50));
  NIBBLE_RETURN_IF_ERROR(
      CheckRange("kProgress: bytes_done", payload.bytes_done, 0, payload.bytes_total));
  return payload;
}

}  // namespace nibble::engine
