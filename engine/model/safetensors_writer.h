// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Writes model.safetensors, or shards with an index, one tensor at a time: the header needs names
// and shapes only, so memory holds no more than the tensor being written.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

#include "base/dtype.h"
#include "base/status.h"

namespace nibble::engine {

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// Not thread-safe. Move-only; a writer destroyed before Finish leaves incomplete files behind.
class SafetensorsWriter {
 public:
  struct Options {
    // A new shard starts where one would exceed this; a larger single tensor gets its own shard.
    int64_t max_shard_bytes = int64_t{5} << 30;
  };

  // Creates the files in `dir` (which exists) with their headers. INVALID_ARGUMENT for a name given
  // twice, an empty list or a shape whose bytes overflow.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& dir,
                                                  std::vector<TensorSpec> tensors,
                                                  const Options& options);
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& dir,
                                                  std::vector<TensorSpec> tensors) {
    return Create(dir, std::move(tensors), Options());
  }

  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&& other) = delete;
  ~SafetensorsWriter();

  // Every tensor once, in any order. `bytes` must be as many as its type and shape say.
  absl::Status Write(std::string_view name, std::span<const uint8_t> bytes);

  // Syncs and closes the files and writes the index when there are several. FAILED_PRECONDITION,
  // naming the first, when tensors are missing.
  absl::Status Finish();

  int num_shards() const { return static_cast<int>(files_.size()); }

 private:
  struct Placement {
    size_t file_idx = 0;
    int64_t offset = 0;  // from the start of the file
    int64_t bytes = 0;
    bool written = false;
  };
  struct File {
    std::string name;
    int fd = -1;
  };

  SafetensorsWriter() = default;

  std::string dir_;
  std::vector<TensorSpec> tensors_;
  std::vector<File> files_;
  absl::flat_hash_map<std::string, Placement> placements_;
  int64_t total_bytes_ = 0;
};

}  // namespace nibble::engine
