// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Fields that several payloads have (rank_protocol.h), and their limits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "comm/group_address.h"
#include "engine/exec/flat_bytes.h"
#include "engine/exec/rank_protocol.h"

namespace nibble::engine {

// Every rank's address goes to every rank, in one frame.
inline constexpr uint32_t kMaxAddressBytes = comm::kMaxGroupAddressBytes;
inline constexpr uint32_t kMaxPolicyBytes = 64 << 10;
static_assert(uint64_t{kMaxRanks} * (kMaxAddressBytes + sizeof(uint32_t)) + kMaxPolicyBytes +
                  1024 <=
              comm::Frame::kMaxPayloadBytes);

struct GenerationAndNumber {
  uint64_t generation = 0;
  uint64_t number = 0;
};

// The beginning of a sentence that is longer than all are allowed to be, cut between two
// characters.
inline std::string_view Shortened(std::string_view text) {
  if (text.size() <= kMaxTextBytes) return text;
  size_t size = kMaxTextBytes;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0U) == 0x80U) --size;
  return text.substr(0, size);
}

inline void PutStrings(const std::vector<std::string>& strings, FlatWriter* writer) {
  writer->Put(static_cast<uint32_t>(strings.size()));
  for (const std::string& text : strings) writer->PutString(text);
}

// At most `max_count`, of at most `max_bytes` each.
inline void ReadStrings(const char* field, uint32_t max_count, uint32_t max_bytes,
                        FlatReader* reader, std::vector<std::string>* strings) {
  const uint32_t count = reader->ReadCount(field);
  reader->CheckAtMost(field, count, max_count);
  // Every string has a count of its own.
  reader->CheckAtMost(field, count, reader->num_left() / sizeof(uint32_t));
  if (reader->ok()) strings->resize(count);
  for (std::string& text : *strings) reader->ReadString(field, &text, max_bytes);
}

inline void PutStatus(const absl::Status& status, FlatWriter* writer) {
  writer->Put(static_cast<uint32_t>(status.code()));
  writer->PutString(Shortened({status.message().data(), status.message().size()}));
}

inline void ReadStatus(FlatReader* reader, absl::Status* status) {
  uint32_t code = 0;
  std::string message;
  reader->Read("status code", &code);
  reader->CheckAtMost("status code", code,
                      static_cast<uint32_t>(absl::StatusCode::kUnauthenticated));
  reader->ReadString("status message", &message, kMaxTextBytes);
  if (reader->ok()) *status = absl::Status(static_cast<absl::StatusCode>(code), message);
}

inline absl::Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgument("{} is {}, the limits are {} and {}", field, value, low, high);
}

inline absl::Status CheckDivides(const char* field, int64_t value, int64_t whole) {
  if (value >= 1 && whole % value == 0) return absl::OkStatus();
  return InvalidArgument("{} is {}, must divide {}", field, value, whole);
}

inline absl::Status CheckIsError(const absl::Status& status, const char* what) {
  return status.ok() ? InvalidArgument("{}: the status is OK, want an error", what)
                     : absl::OkStatus();
}

}  // namespace nibble::engine
