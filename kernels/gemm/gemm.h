// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// D = A * B^T: the linear layers. A is activations [m, k] (tokens), B is weights [n, k] (output
// channels), D is [m, n].
//
// B is packed once at load for the variant that will run it (PackDense, PackInt4, PackInt8,
// PackInt4Float), then shared read-only by all threads. Four families:
//   dense: A is float; B is stored as float32, bfloat16 or float16 and widened to float while
//     multiplying. AMX with bfloat16 weights rounds A to bfloat16 first (to nearest even): D
//     differs from that of the other variants by up to 2^-8 of each product, and is as invariant.
//   W4A8: A is int8 with one scale per row (kernels/quant/quantize_rows.h); B is 4 bit with group
//     scales, in one of the three scale forms of kernels/quant/int4_weight.h:
//       d[m, n] = s_a[m] * c[n] * sum_k a8[m, k] * w8[n, k]
//   W8A8: the same with w8 stored as it is and one scale per output channel.
//   W4A16: A is float; B is 4 bit with float group scales, multiplied out while multiplying.
// Integer sums are exact in int32 (proven per output channel when packing) and bit-equal over all
// variants.
//
// Batch invariance: the bits of row m of D depend on row m of A and on B alone, not on m or on the
// other rows: every variant sums over k in one fixed order, and threads split n and m only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/quant/int4_weight.h"
#include "kernels/quant/int8_weight.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::kernels {

enum class WeightFormat { kDense, kW4A8, kW8A8, kW4A16 };

// W4A8 and W8A8 read GemmArgs.a8, dense and W4A16 weights GemmArgs.a.
constexpr bool TakesInt8(WeightFormat format) {
  return format == WeightFormat::kW4A8 || format == WeightFormat::kW8A8;
}

struct GemmDesc {
  WeightFormat format = WeightFormat::kDense;
  DType storage = DType::kBf16;  // kDense: element type of the packed weights (f32, bf16, f16)
  ScaleForm scale_form = ScaleForm::kFolded;  // kW4A8
  int64_t n = 0;
  int64_t k = 0;
  int64_t group_size = 128;  // kW4A8, kW4A16
};

std::string ToString(const GemmDesc& desc);

// OK when `isa` has a variant for `desc`; else UNIMPLEMENTED or INVALID_ARGUMENT naming the field
// and the limit.
absl::Status Supports(const GemmDesc& desc, Isa isa);

// Weights in one variant's layout. Immutable and thread-safe after packing.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual const GemmDesc& desc() const = 0;
  virtual Isa isa() const = 0;
  virtual size_t size_bytes() const = 0;
  // "w4a8_folded_avx512vnni": format, form and variant, for logs and benchmarks.
  virtual std::string variant_name() const = 0;
};

// Rows of `storage`-typed weights [n, k], contiguous. When `storage` differs from `target`, values
// are converted (round to nearest even). The source is not needed afterwards.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackDense(const void* weights, DType storage,
                                                        int64_t n, int64_t k, DType target, Isa isa,
                                                        ThreadPool* pool);

// kFolded needs scales that fold (FindFoldedScales: FAILED_PRECONDITION if not); kInteger takes any
// sign, zero points and groups, and lowers a channel's amplifier until 127 * sum_g |S_g| * sum_k
// |q_k| < 2^31 (INVALID_ARGUMENT if even |S| <= 1 does not fit). INVALID_ARGUMENT too for a weight
// that does not pass Validate; UNIMPLEMENTED for a group_size above 1024 that is no multiple of it
// and not all of k, and for kFolded with k above 132104.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4(const Int4Weight& weight, ScaleForm form,
                                                       Isa isa, ThreadPool* pool);

// Codes may use all of int8. d = float(sum) * (s_a[m] * scales[n]), then + bias[n].
// INVALID_ARGUMENT for a weight that does not pass Validate, UNIMPLEMENTED for k above 132104.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt8(const Int8Weight& weight, Isa isa,
                                                       ThreadPool* pool);

// Any scales, zero points and groups. Bit-equal to PackDense of the dequantized weights as float32
// on the same instruction set, at an eighth of its memory.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackInt4Float(const Int4Weight& weight, Isa isa,
                                                            ThreadPool* pool);

struct GemmArgs {
  int64_t m = 0;                // rows of A and D; 0 is allowed
  const float* a = nullptr;     // dense, W4A16: [m, a_stride]
  int64_t a_stride = 0;         // elements, >= k
  QuantizedRows a8;             // W4A8, W8A8
  const float* bias = nullptr;  // [n] or null; added in float after scaling
  float* d = nullptr;           // [m, d_stride]
  int64_t d_stride = 0;         // elements, >= n
};

// REQUIRES: args fit weight.desc(); d overlaps with no input. Must not overlap with another use of
// `pool`. The calling thread keeps scratch memory for its next call (activations in tiles), with
// AMX the pool's threads too (sums of a block, at most 0.6 MiB each); std::bad_alloc when there is
// none.
void Run(const PackedWeight& weight, const GemmArgs& args, ThreadPool* pool);

}  // namespace nibble::kernels
