// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Protobuf's wire format, as much of it as reading a SentencePiece model takes: a cursor over the
// fields of one message. Lengths are checked against what is left before they are used. (The engine
// builds without protobuf.)
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace nibble::engine {

class WireReader {
 public:
  explicit WireReader(std::string_view message) : rest_(message), size_(message.size()) {}

  // Moves to the next field; false at the end of the message. INVALID_ARGUMENT with the byte
  // position for a broken one.
  absl::StatusOr<bool> Next();

  int field() const { return field_; }
  // The field's value in the type it is declared with; a field of another wire type is an error.
  absl::StatusOr<std::string_view> Bytes() const;
  absl::StatusOr<int64_t> Int() const;
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<float> Float() const;

 private:
  absl::StatusOr<uint64_t> Varint();
  absl::StatusOr<std::string_view> Take(uint64_t size);
  absl::Status WrongType(const char* want) const;
  size_t position() const { return size_ - rest_.size(); }

  std::string_view rest_;
  size_t size_;
  int field_ = 0;
  int wire_type_ = 0;
  uint64_t number_ = 0;  // varint, fixed32 or fixed64
  std::string_view bytes_;
};

}  // namespace nibble::engine
