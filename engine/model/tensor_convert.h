// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tensors of a checkpoint in the type that weights are stored in.
#pragma once

#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/model/safetensors.h"
#include "engine/model/shard.h"

namespace nibble::engine {

// Writes all of `tensor` (float32, bfloat16 or float16) to `out` as `target` (one of the same),
// rounding to nearest even. INVALID_ARGUMENT, naming tensor, element and value, for another type
// and for a finite value that float16 cannot hold.
absl::Status ConvertTensor(const TensorView& tensor, DType target, uint8_t* out, ThreadPool* pool);

// The same of a share of `tensor` [share.n, share.k]: writes [share.rows, share.columns], reads no
// more than that. REQUIRES: a tensor of this shape.
absl::Status ConvertShare(const TensorView& tensor, const MatrixShare& share, DType target,
                          uint8_t* out, ThreadPool* pool);

// All of it as floats.
absl::StatusOr<std::vector<float>> TensorToFloats(const TensorView& tensor, ThreadPool* pool);

}  // namespace nibble::engine
