// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/wire_reader.h"

#include <bit>
#include <cstring>

namespace nibble::engine {
namespace {

constexpr int kVarint = 0;
constexpr int kFixed64 = 1;
constexpr int kLengthDelimited = 2;
constexpr int kFixed32 = 5;

}  // namespace

absl::StatusOr<uint64_t> WireReader::Varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view byte, Take(1));
    value |= uint64_t{static_cast<uint8_t>(byte[0]) & 0x7fU} << shift;
    if ((static_cast<uint8_t>(byte[0]) & 0x80U) == 0) return value;
  }
  return InvalidArgument("byte {}: a number of more than 10 bytes", position());
}

absl::StatusOr<std::string_view> WireReader::Take(uint64_t size) {
  if (size > rest_.size()) {
    return InvalidArgument("byte {}: {} bytes announced, {} left", position(), size, rest_.size());
  }
  const std::string_view taken = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return taken;
}

absl::StatusOr<bool> WireReader::Next() {
  if (rest_.empty()) return false;
  NIBBLE_ASSIGN_OR_RETURN(const uint64_t key, Varint());
  wire_type_ = static_cast<int>(key & 7U);
  if (key >> 3 == 0 || key >> 3 >= (1U << 29)) {
    return InvalidArgument("byte {}: field number {}", position(), key >> 3);
  }
  field_ = static_cast<int>(key >> 3);
  number_ = 0;
  bytes_ = {};
  if (wire_type_ == kVarint) {
    NIBBLE_ASSIGN_OR_RETURN(number_, Varint());
  } else if (wire_type_ == kLengthDelimited) {
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t size, Varint());
    NIBBLE_ASSIGN_OR_RETURN(bytes_, Take(size));
  } else if (wire_type_ == kFixed32 || wire_type_ == kFixed64) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view raw, Take(wire_type_ == kFixed32 ? 4 : 8));
    std::memcpy(&number_, raw.data(), raw.size());
  } else {
    return InvalidArgument("byte {}: wire type {}", position(), wire_type_);
  }
  return true;
}

absl::Status WireReader::WrongType(const char* want) const {
  return InvalidArgument("byte {}: field {} has wire type {}, want {}", position(), field_,
                         wire_type_, want);
}

absl::StatusOr<std::string_view> WireReader::Bytes() const {
  if (wire_type_ != kLengthDelimited) return WrongType("bytes");
  return bytes_;
}

absl::StatusOr<int64_t> WireReader::Int() const {
  if (wire_type_ != kVarint) return WrongType("a number");
  return static_cast<int64_t>(number_);
}

absl::StatusOr<bool> WireReader::Bool() const {
  if (wire_type_ != kVarint) return WrongType("a boolean");
  return number_ != 0;
}

absl::StatusOr<float> WireReader::Float() const {
  if (wire_type_ != kFixed32) return WrongType("a float");
  return std::bit_cast<float>(static_cast<uint32_t>(number_));
}

}  // namespace nibble::engine
