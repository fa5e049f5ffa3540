// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tensors of a model directory: model.safetensors, or model.safetensors.index.json and its shards,
// memory-mapped. Opening reads the headers only; pages come in as tensors are read.
//
//   NIBBLE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
//   NIBBLE_ASSIGN_OR_RETURN(const TensorView* norm, checkpoint.Get("model.norm.weight", {hidden}));
//   NIBBLE_RETURN_IF_ERROR(ReadFloats(*norm, 0, hidden, out));
//
// A header is believed only after every offset, size and name in it was checked. A file that
// another process truncates while it is mapped kills this process (SIGBUS): replace model files by
// renaming.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/mapped_file.h"
#include "base/status.h"

namespace nibble::engine {

// A tensor in a mapped file. Valid as long as the Checkpoint (or file) it came from.
struct TensorView {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;      // row-major; empty: a scalar
  std::span<const uint8_t> bytes;  // num_elements * SizeOf(dtype), NOT aligned: read with memcpy
  std::string file;                // path, for messages

  int64_t num_elements() const;
};

// "[4096, 512]"
std::string ShapeToString(std::span<const int64_t> shape);

// Elements [first, first + count) of a float32, bfloat16 or float16 tensor as floats.
// INVALID_ARGUMENT, naming the tensor, for another type or a range outside it. Thread-safe.
absl::Status ReadFloats(const TensorView& tensor, int64_t first, int64_t count, float* out);

// Immutable after Open, thread-safe. Moving it keeps the TensorView pointers valid.
class Checkpoint {
 public:
  // NOT_FOUND when `dir` has neither file. INVALID_ARGUMENT for whatever a header or the index gets
  // wrong, naming file, tensor, value and limit.
  static absl::StatusOr<Checkpoint> Open(const std::string& dir);

  // nullptr when there is no such tensor.
  const TensorView* Find(std::string_view name) const;
  // NOT_FOUND naming tensor and directory; with `shape`, INVALID_ARGUMENT when it differs.
  absl::StatusOr<const TensorView*> Get(std::string_view name) const;
  absl::StatusOr<const TensorView*> Get(std::string_view name,
                                        std::span<const int64_t> shape) const;
  absl::StatusOr<const TensorView*> Get(std::string_view name,
                                        std::initializer_list<int64_t> shape) const;

  const std::vector<TensorView>& tensors() const { return tensors_; }  // sorted by name
  int64_t total_bytes() const { return total_bytes_; }                 // of all tensors
  const std::string& dir() const { return dir_; }

 private:
  Checkpoint() = default;

  std::string dir_;
  std::vector<MappedFile> files_;
  std::vector<TensorView> tensors_;
  int64_t total_bytes_ = 0;
};

// The header of one safetensors file whose whole content is `file`; views point into it. Sorted by
// name. `path` is for messages. The fuzz target's entry.
absl::StatusOr<std::vector<TensorView>> ParseSafetensors(std::span<const uint8_t> file,
                                                         std::string_view path);

}  // namespace nibble::engine
