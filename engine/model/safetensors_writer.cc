// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "nlohmann/json.hpp"

#include "base/utf8.h"

namespace nibble::engine {
namespace {

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBf16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI8:
      return "I8";
    case DType::kU8:
      return "U8";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kBool:
      return "BOOL";
  }
  return "";
}

absl::Status ErrnoStatus(const std::string& path, std::string_view action) {
  const int error = errno;
  const std::string message = fmt::format("{}: cannot {}: {}", path, action, std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

absl::Status WriteAt(int fd, const std::string& path, const void* data, size_t size,
                     int64_t offset) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const ssize_t written = pwrite(fd, bytes, size, offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(path, "write");
    bytes += written;
    offset += written;
    size -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> BytesOf(const TensorSpec& spec) {
  auto bytes = static_cast<int64_t>(SizeOf(spec.dtype));
  for (const int64_t size : spec.shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) {
      return InvalidArgument("tensor '{}': size {} overflows or is negative", spec.name, size);
    }
  }
  return bytes;
}

// Length and JSON, padded with spaces so that the data begins at a multiple of 8.
std::string FileHeader(const nlohmann::ordered_json& json) {
  std::string text = json.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text;
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& dir,
                                                            std::vector<TensorSpec> tensors,
                                                            const Options& options) {
  if (tensors.empty()) return InvalidArgument("{}: no tensors to write", dir);
  SafetensorsWriter writer;
  writer.dir_ = dir;

  // Which shard each tensor goes to, in the order given.
  std::vector<std::vector<const TensorSpec*>> shards(1);
  int64_t shard_bytes = 0;
  for (const TensorSpec& spec : tensors) {
    if (spec.name.empty() || !IsValidUtf8(spec.name)) {
      return InvalidArgument("{}: a tensor name is empty or not UTF-8", dir);
    }
    absl::StatusOr<int64_t> bytes = BytesOf(spec);
    if (!bytes.ok()) return Annotate(bytes.status(), dir);
    if (!shards.back().empty() && *bytes > options.max_shard_bytes - shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    const auto [at, added] = writer.placements_.try_emplace(spec.name);
    if (!added) return InvalidArgument("{}: tensor '{}' is given twice", dir, spec.name);
    at->second = {.file_idx = shards.size() - 1, .offset = 0, .bytes = *bytes, .written = false};
    shards.back().push_back(&spec);
    shard_bytes += *bytes;
    writer.total_bytes_ += *bytes;
  }

  for (size_t i = 0; i < shards.size(); ++i) {
    // Larger element types first: each tensor then begins at a multiple of its element size, which
    // readers that view the file in place need.
    std::stable_sort(shards[i].begin(), shards[i].end(), [](const auto* a, const auto* b) {
      return SizeOf(a->dtype) > SizeOf(b->dtype);
    });
    nlohmann::ordered_json json;
    json["__metadata__"] = {{"format", "pt"}};
    int64_t offset = 0;
    for (const TensorSpec* spec : shards[i]) {
      Placement& placement = writer.placements_[spec->name];
      placement.offset = offset;
      offset += placement.bytes;
      json[spec->name] = {{"dtype", DTypeName(spec->dtype)},
                          {"shape", spec->shape},
                          {"data_offsets", {placement.offset, offset}}};
    }
    const std::string header = FileHeader(json);
    for (const TensorSpec* spec : shards[i]) {
      writer.placements_[spec->name].offset += static_cast<int64_t>(header.size());
    }
    File file = {.name = shards.size() == 1 ? "model.safetensors"
                                            : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1,
                                                          shards.size()),
                 .fd = -1};
    const std::string path = dir + "/" + file.name;
    file.fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file.fd < 0) return ErrnoStatus(path, "create");
    writer.files_.push_back(file);
    NIBBLE_RETURN_IF_ERROR(WriteAt(file.fd, path, header.data(), header.size(), 0));
  }
  writer.tensors_ = std::move(tensors);
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : dir_(std::move(other.dir_)),
      tensors_(std::move(other.tensors_)),
      files_(std::exchange(other.files_, {})),
      placements_(std::move(other.placements_)),
      total_bytes_(other.total_bytes_) {}

SafetensorsWriter::~SafetensorsWriter() {
  for (const File& file : files_) {
    if (file.fd >= 0) close(file.fd);
  }
}

absl::Status SafetensorsWriter::Write(std::string_view name, std::span<const uint8_t> bytes) {
  const auto found = placements_.find(absl::string_view(name.data(), name.size()));
  if (found == placements_.end()) {
    return InvalidArgument("{}: tensor '{}' was not declared", dir_, name);
  }
  Placement& placement = found->second;
  if (placement.written) {
    return InvalidArgument("{}: tensor '{}' is written twice", dir_, name);
  }
  if (bytes.size() != static_cast<size_t>(placement.bytes)) {
    return InvalidArgument("{}: tensor '{}': {} bytes, declared {}", dir_, name, bytes.size(),
                           placement.bytes);
  }
  const File& file = files_[placement.file_idx];
  NIBBLE_RETURN_IF_ERROR(
      WriteAt(file.fd, dir_ + "/" + file.name, bytes.data(), bytes.size(), placement.offset));
  placement.written = true;
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  for (const TensorSpec& spec : tensors_) {
    if (!placements_[spec.name].written) {
      return absl::FailedPreconditionError(
          fmt::format("{}: tensor '{}' was not written", dir_, spec.name));
    }
  }
  for (File& file : files_) {
    const std::string path = dir_ + "/" + file.name;
    if (fsync(file.fd) != 0) return ErrnoStatus(path, "sync");
    const int closed = close(std::exchange(file.fd, -1));
    if (closed != 0) return ErrnoStatus(path, "close");
  }
  if (files_.size() == 1) return absl::OkStatus();

  nlohmann::ordered_json index;
  index["metadata"] = {{"total_size", total_bytes_}};
  for (const TensorSpec& spec : tensors_) {
    index["weight_map"][spec.name] = files_[placements_[spec.name].file_idx].name;
  }
  const std::string text = index.dump(2) + "\n";
  const std::string path = dir_ + "/model.safetensors.index.json";
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(path, "create");
  absl::Status status = WriteAt(fd, path, text.data(), text.size(), 0);
  if (status.ok() && fsync(fd) != 0) status = ErrnoStatus(path, "sync");
  close(fd);
  return status;
}

}  // namespace nibble::engine
