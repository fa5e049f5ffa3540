// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The header of a safetensors file: 8 bytes of length (little endian), that many bytes of JSON
//   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__":
//   {...}}
// and the tensors' bytes, without holes. It is read as a stream of events, so that a hostile header
// costs no more memory than the tensors it declares.

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "nlohmann/json.hpp"

#include "base/utf8.h"
#include "engine/model/safetensors.h"

namespace nibble::engine {
namespace {

// The reference implementation's limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxQuotedBytes = 200;  // of the header in a message

constexpr std::string_view kSupportedDTypes = "F32, BF16, F16, I8, U8, I32, I64, BOOL";

std::optional<DType> ParseDType(std::string_view name) {
  static constexpr std::pair<std::string_view, DType> kNames[] = {
      {"F32", DType::kF32}, {"BF16", DType::kBf16}, {"F16", DType::kF16}, {"I8", DType::kI8},
      {"U8", DType::kU8},   {"I32", DType::kI32},   {"I64", DType::kI64}, {"BOOL", DType::kBool}};
  for (const auto& [text, dtype] : kNames) {
    if (text == name) return dtype;
  }
  return std::nullopt;
}

bool IsPrintable(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f;
  });
}

struct Entry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::pair<int64_t, int64_t>> offsets;  // [begin, end) in the data
};

// Depth 1 holds tensor names, depth 2 a tensor's fields (or metadata), depth 3 the numbers of an
// array. Anything else is refused where it stands.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(std::string_view path) : path_(path) {}

  std::vector<Entry>& entries() { return entries_; }
  const absl::Status& status() const { return status_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(double, const std::string& text) override { return Unexpected(text); }
  bool number_integer(int64_t value) override { return Unexpected(std::to_string(value)); }
  bool binary(nlohmann::json::binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(uint64_t value) override {
    if (depth_ != 3) return Unexpected(std::to_string(value));
    if (value > static_cast<uint64_t>(INT64_MAX)) {
      return Fail("{} has {}, the limit is 2^63 - 1", field_, value);
    }
    if (numbers_.size() >= kMaxRank) {
      return Fail("{} has more than {} numbers", field_, kMaxRank);
    }
    numbers_.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(std::string& value) override {
    if (depth_ != 2) return Unexpected("a string");
    if (in_metadata_) return true;
    if (field_ != "dtype") return Unexpected("a string");
    if (entries_.back().dtype) return Fail("dtype is given twice");
    entries_.back().dtype = ParseDType(value);
    if (!entries_.back().dtype) {
      status_ = Unimplemented("{}: tensor '{}': dtype '{}' is not supported (supported: {})", path_,
                              entries_.back().name, IsPrintable(value) ? value.substr(0, 32) : "?",
                              kSupportedDTypes);
      return false;
    }
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ >= 2) return Unexpected("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    if (depth_ != 1) return true;
    if (in_metadata_) {
      in_metadata_ = false;
      return true;
    }
    const Entry& entry = entries_.back();
    if (!entry.dtype) return Fail("dtype is missing");
    if (!entry.shape) return Fail("shape is missing");
    if (!entry.offsets) return Fail("data_offsets is missing");
    return true;
  }

  bool key(std::string& name) override {
    if (depth_ == 2) {
      field_ = name;
      return true;
    }
    if (name == "__metadata__") {
      if (metadata_seen_) {
        status_ = InvalidArgument("{}: __metadata__ is given twice", path_);
        return false;
      }
      metadata_seen_ = in_metadata_ = true;
      return true;
    }
    if (name.size() > kMaxNameBytes) {
      status_ = InvalidArgument("{}: a tensor name of {} bytes, the limit is {}", path_,
                                name.size(), kMaxNameBytes);
      return false;
    }
    if (!IsPrintable(name)) {
      status_ = InvalidArgument("{}: a tensor name has control characters", path_);
      return false;
    }
    entries_.push_back({.name = name, .dtype = {}, .shape = {}, .offsets = {}});
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || (field_ != "shape" && field_ != "data_offsets")) {
      return Unexpected("an array");
    }
    ++depth_;
    numbers_.clear();
    return true;
  }
  bool end_array() override {
    --depth_;
    Entry& entry = entries_.back();
    if (field_ == "shape") {
      if (entry.shape) return Fail("shape is given twice");
      entry.shape = std::move(numbers_);
      return true;
    }
    if (entry.offsets) return Fail("data_offsets is given twice");
    if (numbers_.size() != 2) return Fail("data_offsets has {} numbers, not 2", numbers_.size());
    entry.offsets = {numbers_[0], numbers_[1]};
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    // what() quotes the last token, which may be as long as the header and any bytes.
    const std::string_view what = std::string_view(error.what()).substr(0, kMaxQuotedBytes);
    status_ = InvalidArgument("{}: malformed header at byte {}: {}", path_, position,
                              ReplaceInvalidUtf8(what));
    return false;
  }

 private:
  template <typename... Args>
  bool Fail(fmt::format_string<Args...> format, Args&&... args) {
    status_ = InvalidArgument("{}: tensor '{}': {}", path_, entries_.back().name,
                              fmt::format(format, std::forward<Args>(args)...));
    return false;
  }
  bool Unexpected(std::string_view what) {
    const std::string where = in_metadata_       ? "__metadata__"
                              : entries_.empty() ? "the header"
                                                 : "tensor '" + entries_.back().name + "'";
    status_ =
        InvalidArgument("{}: unexpected {} in {}", path_, what.substr(0, kMaxQuotedBytes), where);
    return false;
  }

  std::string path_;
  absl::Status status_;
  int depth_ = 0;
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
  std::string field_;
  std::vector<int64_t> numbers_;
  std::vector<Entry> entries_;
};

absl::StatusOr<std::vector<Entry>> ReadEntries(std::string_view json, std::string_view path) {
  HeaderReader reader(path);
  bool complete = false;
  try {
    complete = nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
  } catch (const nlohmann::json::exception& error) {
    return InvalidArgument("{}: malformed header: {}", path, error.what());
  }
  if (!reader.status().ok()) return reader.status();
  if (!complete) return InvalidArgument("{}: malformed header", path);
  return std::move(reader.entries());
}

// Bytes of dtype * shape; error when the product does not fit.
absl::StatusOr<int64_t> ExpectedBytes(const Entry& entry, std::string_view path) {
  auto bytes = static_cast<int64_t>(SizeOf(*entry.dtype));
  for (const int64_t size : *entry.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) {
      return InvalidArgument("{}: tensor '{}': shape {} of {} overflows 2^63 bytes", path,
                             entry.name, ShapeToString(*entry.shape), ToString(*entry.dtype));
    }
  }
  return bytes;
}

// Every byte of the data belongs to one tensor, as the format demands.
absl::Status CheckCoverage(const std::vector<Entry>& entries, int64_t data_bytes,
                           std::string_view path) {
  std::vector<const Entry*> by_offset;
  by_offset.reserve(entries.size());
  for (const Entry& entry : entries) by_offset.push_back(&entry);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const Entry* a, const Entry* b) { return *a->offsets < *b->offsets; });
  int64_t end = 0;
  const Entry* previous = nullptr;
  for (const Entry* entry : by_offset) {
    const int64_t begin = entry->offsets->first;
    if (begin < end) {
      return InvalidArgument("{}: tensor '{}' begins at byte {}, inside '{}', which ends at {}",
                             path, entry->name, begin, previous->name, end);
    }
    if (begin > end) {
      return InvalidArgument("{}: bytes {} to {} before tensor '{}' belong to no tensor", path, end,
                             begin, entry->name);
    }
    end = entry->offsets->second;
    previous = entry;
  }
  if (end != data_bytes) {
    return InvalidArgument("{}: {} bytes of data, the tensors end at {}", path, data_bytes, end);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TensorView>> ParseSafetensors(std::span<const uint8_t> file,
                                                         std::string_view path) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes)) {
    return InvalidArgument("{}: {} bytes, a safetensors file has at least 8", path, file.size());
  }
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes) {
    return InvalidArgument("{}: header of {} bytes, the limit is {}", path, header_bytes,
                           kMaxHeaderBytes);
  }
  if (header_bytes > file.size() - sizeof(header_bytes)) {
    return InvalidArgument("{}: header of {} bytes in a file of {}: truncated?", path, header_bytes,
                           file.size());
  }
  const std::span<const uint8_t> header = file.subspan(sizeof(header_bytes), header_bytes);
  const std::span<const uint8_t> data = file.subspan(sizeof(header_bytes) + header_bytes);
  NIBBLE_ASSIGN_OR_RETURN(
      std::vector<Entry> entries,
      ReadEntries({reinterpret_cast<const char*>(header.data()), header.size()}, path));

  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  std::vector<TensorView> tensors;
  tensors.reserve(entries.size());
  for (const Entry& entry : entries) {
    if (!tensors.empty() && tensors.back().name == entry.name) {
      return InvalidArgument("{}: tensor '{}' is given twice", path, entry.name);
    }
    NIBBLE_ASSIGN_OR_RETURN(const int64_t bytes, ExpectedBytes(entry, path));
    const auto [begin, end] = *entry.offsets;
    if (begin > end || static_cast<uint64_t>(end) > data.size()) {
      return InvalidArgument("{}: tensor '{}': data_offsets [{}, {}] in data of {} bytes", path,
                             entry.name, begin, end, data.size());
    }
    if (end - begin != bytes) {
      return InvalidArgument("{}: tensor '{}': {} bytes, but {} {} is {}", path, entry.name,
                             end - begin, ToString(*entry.dtype), ShapeToString(*entry.shape),
                             bytes);
    }
    tensors.push_back(
        {.name = entry.name,
         .dtype = *entry.dtype,
         .shape = *entry.shape,
         .bytes = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(bytes)),
         .file = std::string(path)});
  }
  NIBBLE_RETURN_IF_ERROR(CheckCoverage(entries, static_cast<int64_t>(data.size()), path));
  return tensors;
}

}  // namespace nibble::engine
