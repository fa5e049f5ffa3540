// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Values one after another in a string of bytes, little-endian and without padding: the form of
// what driver and ranks tell each other. Arrays and strings have their count in front.
//
//   FlatWriter writer(bytes_in_all);                      FlatReader reader(bytes, "kPing");
//   writer.Put(number);                                   reader.Read("number", &number);
//   writer.PutArray(ids);                                 reader.ReadArray("ids", &ids);
//   return std::move(writer).Finish();                    return reader.Finish();
//
// A reader takes any bytes: the first thing that does not fit is its error, everything after it is
// read as zero or empty. Counts are checked against the bytes that are there before memory is
// taken.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

static_assert(std::endian::native == std::endian::little);

// Numbers, and structs of numbers without padding.
template <typename T>
concept FlatValue = std::is_trivially_copyable_v<T> && !std::is_pointer_v<T> &&
                    (std::is_arithmetic_v<T> || std::is_class_v<T>)&&!std::is_same_v<T, bool>;

class FlatWriter {
 public:
  explicit FlatWriter(size_t expected_bytes = 0) { bytes_.reserve(expected_bytes); }

  template <FlatValue T>
  void Put(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void PutFlag(bool value) { Put<uint8_t>(value ? 1 : 0); }
  void PutString(std::string_view text) {
    Put(static_cast<uint32_t>(text.size()));
    bytes_.append(text);
  }
  template <FlatValue T>
  void PutArray(const std::vector<T>& values) {
    Put(static_cast<uint32_t>(values.size()));
    PutValues(values);
  }
  // Without the count in front.
  template <FlatValue T>
  void PutValues(const std::vector<T>& values) {
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  void PutRest(std::string_view bytes) { bytes_.append(bytes); }

  std::string Finish() && { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class FlatReader {
 public:
  // `what` names the message in errors. Both must outlive the reader.
  FlatReader(std::string_view bytes, const char* what) : left_(bytes), what_(what) {}

  template <FlatValue T>
  void Read(const char* field, T* value) {
    if (const char* at = Take(field, 1, sizeof(T))) std::memcpy(value, at, sizeof(T));
  }
  void ReadFlag(const char* field, bool* value) {
    uint8_t byte = 0;
    Read(field, &byte);
    if (byte > 1) Refuse(field, byte, 1);
    *value = byte == 1;
  }
  void ReadString(const char* field, std::string* text, uint32_t limit = UINT32_MAX) {
    const uint32_t count = ReadCount(field);
    CheckAtMost(field, count, limit);
    if (const char* at = Take(field, count, 1)) text->assign(at, count);
  }
  template <FlatValue T>
  void ReadArray(const char* field, std::vector<T>* values) {
    ReadValues(field, ReadCount(field), values);
  }
  // Without the count in front.
  template <FlatValue T>
  void ReadValues(const char* field, uint64_t count, std::vector<T>* values) {
    const char* at = Take(field, count, sizeof(T));
    if (at == nullptr || count == 0) return;
    values->resize(count);
    std::memcpy(values->data(), at, count * sizeof(T));
  }
  uint32_t ReadCount(const char* field) {
    uint32_t count = 0;
    Read(field, &count);
    return count;
  }
  std::string_view ReadRest() { return std::exchange(left_, {}); }

  // INVALID_ARGUMENT when `value` is above `limit`.
  void CheckAtMost(const char* field, uint64_t value, uint64_t limit) {
    if (value > limit) Refuse(field, value, limit);
  }
  size_t num_left() const { return left_.size(); }
  bool ok() const { return status_.ok(); }
  // The first error; bytes that are left over are one.
  absl::Status Finish() {
    if (status_.ok() && !left_.empty()) {
      status_ = InvalidArgument("{}: {} bytes too many", what_, left_.size());
    }
    return status_;
  }

 private:
  // The next `count` items of `size` bytes; null, with the error noted, when they are not there.
  const char* Take(const char* field, uint64_t count, size_t size) {
    if (!status_.ok()) return nullptr;
    if (count > left_.size() / size) {
      status_ = InvalidArgument("{}: {} needs {} times {} bytes, {} are there", what_, field, count,
                                size, left_.size());
      left_ = {};
      return nullptr;
    }
    const char* at = left_.data();
    left_.remove_prefix(count * size);
    return at;
  }
  void Refuse(const char* field, uint64_t value, uint64_t limit) {
    if (!status_.ok()) return;
    status_ = InvalidArgument("{}: {} is {}, the limit is {}", what_, field, value, limit);
    left_ = {};
  }

  std::string_view left_;
  const char* what_;
  absl::Status status_;
};

}  // namespace nibble::engine
