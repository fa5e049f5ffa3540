// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as a message between driver and rank, the first byte saying which: an error, or a value
// whose bytes are these.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/exec/rank_protocol.h"

namespace {

template <typename Payload>
void Check(std::string_view bytes) {
  const auto payload = Payload::Decode(bytes);
  // Of an error status that is OK the message is dropped.
  if constexpr (!requires { payload->status; }) {
    if (payload.ok() && payload->Encode() != bytes) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace engine = nibble::engine;
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (static_cast<engine::RankMessage>(data[0])) {
    case engine::RankMessage::kLoaded:
      Check<engine::LoadedPayload>(bytes);
      break;
    case engine::RankMessage::kPrepared:
      Check<engine::PreparedPayload>(bytes);
      break;
    case engine::RankMessage::kConnected:
      Check<engine::ConnectedPayload>(bytes);
      break;
    case engine::RankMessage::kStepDone:
      Check<engine::StepDonePayload>(bytes);
      break;
    case engine::RankMessage::kFailed:
      Check<engine::FailedPayload>(bytes);
      break;
    case engine::RankMessage::kPong:
      Check<engine::PongPayload>(bytes);
      break;
    case engine::RankMessage::kPing:
      Check<engine::PingPayload>(bytes);
      break;
    case engine::RankMessage::kExpertLoad:
      Check<engine::ExpertLoadPayload>(bytes);
      break;
    case engine::RankMessage::kProgress:
      Check<engine::ProgressPayload>(bytes);
      break;
    case engine::RankMessage::kGenerationFailed:
      Check<engine::GenerationFailedPayload>(bytes);
      break;
    case engine::RankMessage::kAllocate:
      Check<engine::AllocatePayload>(bytes);
      break;
    case engine::RankMessage::kPrepare:
      Check<engine::PreparePayload>(bytes);
      break;
    case engine::RankMessage::kConnect:
      Check<engine::ConnectPayload>(bytes);
      break;
    case engine::RankMessage::kStep:
      Check<engine::StepPayload>(bytes);
      break;
    case engine::RankMessage::kAbort:
      Check<engine::AbortPayload>(bytes);
      break;
    default:
      break;
  }
  return 0;
}
