// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a rank says.

#include "engine/exec/flat_bytes.h"
#include "engine/exec/rank_protocol.h"
#include "engine/exec/rank_protocol_fields.h"
#include "engine/exec/step_codec.h"

namespace nibble::engine {
namespace {

constexpr uint32_t kMaxWarnings = 64;

struct PongWire {
  uint64_t number = 0;
  uint64_t generation = 0;
  uint64_t changes = 0;
  uint64_t operation = 0;
  uint64_t bytes = 0;
  uint64_t sent = 0;
  uint64_t received = 0;
  uint64_t phase = 0;
};

}  // namespace

std::string LoadedPayload::Encode() const {
  FlatWriter writer(256);
  writer.Put(kRankProtocolVersion);
  writer.Put(rank);
  writer.Put(size);
  writer.Put(num_stages);
  writer.Put(expert_size);
  writer.Put(vocab_size);
  writer.Put(hidden_size);
  writer.Put(description.weight_bytes);
  writer.Put(description.kv_block_bytes);
  writer.Put(description.available_bytes);
  writer.PutFlag(description.memory_is_own);
  writer.Put(description.total_bytes);
  writer.Put(description.step_token_bytes);
  writer.Put(description.step_seq_bytes);
  writer.Put(description.kv_dtype);
  writer.Put(description.num_layers);
  writer.Put(description.num_experts);
  writer.PutString(description.quantization_name);
  writer.PutString(description.device_name);
  std::vector<std::string> warnings;
  for (const std::string& text : description.warnings) {
    if (warnings.size() < kMaxWarnings) warnings.emplace_back(Shortened(text));
  }
  PutStrings(warnings, &writer);
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
  reader.Read("num_stages", &payload.num_stages);
  reader.Read("expert_size", &payload.expert_size);
  reader.Read("vocab_size", &payload.vocab_size);
  reader.Read("hidden_size", &payload.hidden_size);
  RankDescription& description = payload.description;
  reader.Read("weight_bytes", &description.weight_bytes);
  reader.Read("kv_block_bytes", &description.kv_block_bytes);
  reader.Read("available_bytes", &description.available_bytes);
  reader.ReadFlag("memory_is_own", &description.memory_is_own);
  reader.Read("total_bytes", &description.total_bytes);
  reader.Read("step_token_bytes", &description.step_token_bytes);
  reader.Read("step_seq_bytes", &description.step_seq_bytes);
  reader.Read("kv_dtype", &description.kv_dtype);
  reader.Read("num_layers", &description.num_layers);
  reader.Read("num_experts", &description.num_experts);
  reader.ReadString("quantization_name", &description.quantization_name, kMaxTextBytes);
  reader.ReadString("device_name", &description.device_name, kMaxTextBytes);
  ReadStrings("warnings", kMaxWarnings, kMaxTextBytes, &reader, &description.warnings);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_RETURN_IF_ERROR(CheckRange("kLoaded: size", payload.size, 1, kMaxRanks));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kLoaded: rank", payload.rank, 0, payload.size - 1));
  NIBBLE_RETURN_IF_ERROR(CheckDivides("kLoaded: num_stages", payload.num_stages, payload.size));
  NIBBLE_RETURN_IF_ERROR(
      CheckDivides("kLoaded: expert_size", payload.expert_size, payload.size / payload.num_stages));
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
  reader.ReadString("address", &payload.address, kMaxAddressBytes);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
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
  reader.ReadString("policy", &payload.policy, kMaxPolicyBytes);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return payload;
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

std::string PongPayload::Encode() const {
  FlatWriter writer(sizeof(PongWire));
  writer.Put(PongWire{.number = number,
                      .generation = activity.generation,
                      .changes = activity.changes,
                      .operation = activity.operation,
                      .bytes = activity.bytes,
                      .sent = activity.sent,
                      .received = activity.received,
                      .phase = static_cast<uint64_t>(activity.phase)});
  return std::move(writer).Finish();
}

absl::StatusOr<PongPayload> PongPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kPong");
  PongWire wire;
  reader.Read("pong", &wire);
  reader.CheckAtMost("phase", wire.phase, static_cast<uint64_t>(RankPhase::kSending));
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return PongPayload{.number = wire.number,
                     .activity = {.generation = wire.generation,
                                  .changes = wire.changes,
                                  .operation = wire.operation,
                                  .bytes = wire.bytes,
                                  .sent = wire.sent,
                                  .received = wire.received,
                                  .phase = static_cast<RankPhase>(wire.phase)}};
}

std::string ExpertLoadPayload::Encode() const {
  FlatWriter writer(32 + load.tokens.size() * sizeof(uint64_t));
  writer.Put(process);
  writer.Put(load.num_layers);
  writer.Put(load.num_experts);
  writer.PutArray(load.tokens);
  return std::move(writer).Finish();
}

absl::StatusOr<ExpertLoadPayload> ExpertLoadPayload::Decode(std::string_view bytes) {
  FlatReader reader(bytes, "kExpertLoad");
  ExpertLoadPayload payload;
  ExpertLoad& load = payload.load;
  reader.Read("process", &payload.process);
  reader.Read("num_layers", &load.num_layers);
  reader.Read("num_experts", &load.num_experts);
  reader.ReadArray("tokens", &load.tokens);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  NIBBLE_RETURN_IF_ERROR(CheckRange("kExpertLoad: num_layers", load.num_layers, 0, kMaxLayers));
  NIBBLE_RETURN_IF_ERROR(CheckRange("kExpertLoad: num_experts", load.num_experts, 0, kMaxExperts));
  const int64_t count = load.num_layers * load.num_experts;
  NIBBLE_RETURN_IF_ERROR(CheckRange("kExpertLoad: the number of counts",
                                    static_cast<int64_t>(load.tokens.size()), count, count));
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
