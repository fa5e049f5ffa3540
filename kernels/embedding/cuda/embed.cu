// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "kernels/device/elements.cuh"
#include "kernels/embedding/cuda/embed.h"
#include "kernels/quant/cuda/row_plan.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxHidden = int64_t{1} << 20;
constexpr int kThreads = 256;  // of a block, which has a piece of a row

__global__ __launch_bounds__(kThreads) void EmbedKernel(EmbedArgs args, int pieces_per_row) {
  const int64_t token = blockIdx.x / pieces_per_row;
  const int piece = static_cast<int>(blockIdx.x % pieces_per_row);
  const int64_t column = int64_t{piece * kThreads + static_cast<int>(threadIdx.x)} * kElements;
  if (column >= args.hidden) return;
  const int64_t id = args.token_ids[token];
  Float8 x = {};
  if (id >= args.begin_id && id < args.end_id) {
    const DeviceMatrix table = {.data = const_cast<void*>(args.table), .dtype = args.dtype};
    x = Load8(table, (id - args.begin_id) * args.hidden + column);
  }
  Store8(args.out + token * args.hidden + column, x);
}

// Word: 16 bytes where everything is aligned to them, else 4.
template <typename Word>
__global__ __launch_bounds__(kThreads) void GatherRowsKernel(const Word* from, const int32_t* rows,
                                                             int64_t row_words, int pieces_per_row,
                                                             Word* to) {
  const int64_t row = blockIdx.x / pieces_per_row;
  const int piece = static_cast<int>(blockIdx.x % pieces_per_row);
  const int64_t word = int64_t{piece} * kThreads + threadIdx.x;
  if (word < row_words) to[row * row_words + word] = from[rows[row] * row_words + word];
}

template <typename Word>
absl::Status LaunchGather(const void* from, const int32_t* rows, int64_t num_rows,
                          int64_t row_bytes, void* to, cudaStream_t stream) {
  const auto row_words = row_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t pieces = (row_words + kThreads - 1) / kThreads;
  NIBBLE_RETURN_IF_ERROR(CheckGrid(num_rows, pieces));
  return gpu::Launch(
      GatherRowsKernel<Word>,
      {.grid = {static_cast<unsigned>(num_rows * pieces)}, .block = {kThreads}, .stream = stream},
      static_cast<const Word*>(from), rows, row_words, pieces, static_cast<Word*>(to));
}

}  // namespace

absl::Status Embed(const EmbedArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckColumns("hidden", args.hidden, kMaxHidden));
  if (args.begin_id < 0 || args.end_id < args.begin_id) {
    return InvalidArgument("the table is of tokens {} to {}, wanted is a range", args.begin_id,
                           args.end_id);
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(
      "the table",
      {.data = const_cast<void*>(args.table), .dtype = args.dtype, .stride = args.hidden},
      args.end_id - args.begin_id, args.hidden));
  NIBBLE_RETURN_IF_ERROR(
      CheckMatrix("the output", {.data = args.out, .dtype = DType::kF32, .stride = args.hidden},
                  args.num_tokens, args.hidden));
  const int64_t chunks = args.hidden / kElements;
  const int64_t pieces = (chunks + kThreads - 1) / kThreads;
  NIBBLE_RETURN_IF_ERROR(CheckGrid(args.num_tokens, pieces));
  return gpu::Launch(EmbedKernel,
                     {.grid = {static_cast<unsigned>(args.num_tokens * pieces)},
                      .block = {kThreads},
                      .stream = stream},
                     args, pieces);
}

absl::Status GatherRows(const void* from, const int32_t* rows, int64_t num_rows, int64_t row_bytes,
                        void* to, cudaStream_t stream) {
  constexpr int64_t kMaxRowBytes = int64_t{1} << 30;
  if (row_bytes <= 0 || row_bytes % 4 != 0 || row_bytes > kMaxRowBytes) {
    return InvalidArgument("rows have {} bytes, wanted is a multiple of 4, {} at most", row_bytes,
                           kMaxRowBytes);
  }
  const uintptr_t places = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (row_bytes % sizeof(uint4) == 0 && places % sizeof(uint4) == 0) {
    return LaunchGather<uint4>(from, rows, num_rows, row_bytes, to, stream);
  }
  if (places % sizeof(uint32_t) != 0) {
    return InvalidArgument("rows go from {} to {}, wanted is memory aligned to 4 bytes", from, to);
  }
  return LaunchGather<uint32_t>(from, rows, num_rows, row_bytes, to, stream);
}

}  // namespace nibble::kernels::cuda
