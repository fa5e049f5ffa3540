// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "base/float16.h"
#include "base/json.h"
#include "base/log.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxShards = 4096;

bool Exists(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0;
}

// A shard is a file beside the index: anything that could lead elsewhere is refused.
bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos && name.find("..") == std::string_view::npos;
}

// Tensor names of each shard, from model.safetensors.index.json.
using ShardMap = std::map<std::string, std::vector<std::string>>;

absl::StatusOr<ShardMap> ReadIndex(const std::string& path) {
  const JsonLimits limits;
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, limits.max_bytes));
  absl::StatusOr<nlohmann::json> json = ParseJson(text, limits);
  if (!json.ok()) return Annotate(json.status(), path);
  const auto weight_map = json->is_object() ? json->find("weight_map") : json->end();
  if (weight_map == json->end() || !weight_map->is_object() || weight_map->empty()) {
    return InvalidArgument("{}: weight_map is missing, empty or not an object", path);
  }
  ShardMap shards;
  for (const auto& [name, shard] : weight_map->items()) {
    if (!shard.is_string()) {
      return InvalidArgument("{}: tensor '{}' names no shard file", path, name);
    }
    const auto& file = shard.get_ref<const std::string&>();
    if (!IsPlainFileName(file)) {
      return InvalidArgument("{}: tensor '{}' is in '{}', which is not a file name", path, name,
                             file);
    }
    shards[file].push_back(name);
    if (shards.size() > kMaxShards) {
      return InvalidArgument("{}: more than {} shards", path, kMaxShards);
    }
  }
  return shards;
}

// Moves the tensors that the index puts into this shard from `found` (sorted) to `tensors`.
absl::Status TakeIndexed(std::vector<std::string> names, std::vector<TensorView> found,
                         const std::string& path, std::vector<TensorView>* tensors) {
  std::sort(names.begin(), names.end());
  auto next = found.begin();
  for (const std::string& name : names) {
    next = std::lower_bound(next, found.end(), name, [](const TensorView& view, const auto& key) {
      return view.name < key;
    });
    if (next == found.end() || next->name != name) {
      return InvalidArgument("{}: the index says tensor '{}' is here, but it is not", path, name);
    }
    tensors->push_back(std::move(*next++));
  }
  if (names.size() < found.size()) {
    log::Warning("{}: {} tensors are not in the index and are left out", path,
                 found.size() - names.size());
  }
  return absl::OkStatus();
}

template <typename T>
void Widen(const uint8_t* bytes, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    out[i] = ToFloat(value);
  }
}

}  // namespace

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

std::string ShapeToString(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ", "));
}

absl::Status ReadFloats(const TensorView& tensor, int64_t first, int64_t count, float* out) {
  const int64_t size = tensor.num_elements();
  if (first < 0 || count < 0 || first > size || count > size - first) {
    return InvalidArgument("{}: tensor '{}': {} elements from {} on, it has {}", tensor.file,
                           tensor.name, count, first, size);
  }
  const uint8_t* bytes = tensor.bytes.data() + first * static_cast<int64_t>(SizeOf(tensor.dtype));
  switch (tensor.dtype) {
    case DType::kF32:
      if (count > 0) std::memcpy(out, bytes, static_cast<size_t>(count) * sizeof(float));
      return absl::OkStatus();
    case DType::kBf16:
      Widen<BFloat16>(bytes, count, out);
      return absl::OkStatus();
    case DType::kF16:
      Widen<Float16>(bytes, count, out);
      return absl::OkStatus();
    default:
      return InvalidArgument(
          "{}: tensor '{}' is {}, not one of the floating point types float32, bfloat16, float16",
          tensor.file, tensor.name, ToString(tensor.dtype));
  }
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& dir) {
  ShardMap shards;
  const std::string single = dir + "/model.safetensors";
  const std::string index = dir + "/model.safetensors.index.json";
  const bool indexed = !Exists(single);
  if (!indexed) {
    shards["model.safetensors"] = {};
  } else if (Exists(index)) {
    NIBBLE_ASSIGN_OR_RETURN(shards, ReadIndex(index));
  } else if (Exists(dir + "/pytorch_model.bin") || Exists(dir + "/pytorch_model.bin.index.json")) {
    return NotFound("{}: only pytorch_model.bin; save the model as safetensors", dir);
  } else {
    return NotFound("{}: neither model.safetensors nor model.safetensors.index.json", dir);
  }

  Checkpoint checkpoint;
  checkpoint.dir_ = dir;
  for (auto& [name, tensor_names] : shards) {
    const std::string path = dir + "/" + name;
    absl::StatusOr<MappedFile> file = MappedFile::Open(path);
    if (!file.ok()) return indexed ? Annotate(file.status(), index) : file.status();
    NIBBLE_ASSIGN_OR_RETURN(std::vector<TensorView> found, ParseSafetensors(file->bytes(), path));
    checkpoint.files_.push_back(*std::move(file));
    if (!indexed) {
      checkpoint.tensors_ = std::move(found);
    } else {
      NIBBLE_RETURN_IF_ERROR(
          TakeIndexed(std::move(tensor_names), std::move(found), path, &checkpoint.tensors_));
    }
  }
  std::sort(checkpoint.tensors_.begin(), checkpoint.tensors_.end(),
            [](const TensorView& a, const TensorView& b) { return a.name < b.name; });
  for (const TensorView& tensor : checkpoint.tensors_) {
    checkpoint.total_bytes_ += static_cast<int64_t>(tensor.bytes.size());
  }
  return checkpoint;
}

const TensorView* Checkpoint::Find(std::string_view name) const {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorView& view, std::string_view key) { return view.name < key; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

absl::StatusOr<const TensorView*> Checkpoint::Get(std::string_view name) const {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) return NotFound("{}: tensor '{}' is missing", dir_, name);
  return tensor;
}

absl::StatusOr<const TensorView*> Checkpoint::Get(std::string_view name,
                                                  std::span<const int64_t> shape) const {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, Get(name));
  if (!std::equal(tensor->shape.begin(), tensor->shape.end(), shape.begin(), shape.end())) {
    return InvalidArgument("{}: tensor '{}' is {}, config.json makes it {}", tensor->file, name,
                           ShapeToString(tensor->shape), ShapeToString(shape));
  }
  return tensor;
}

absl::StatusOr<const TensorView*> Checkpoint::Get(std::string_view name,
                                                  std::initializer_list<int64_t> shape) const {
  return Get(name, std::span<const int64_t>(shape.begin(), shape.size()));
}

}  // namespace nibble::engine
