// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Problems of tests/kernels/attention/paged_problem.h on a device.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/float16.h"
#include "kernels/attention/cuda/paged_attention.h"
#include "tests/kernels/attention/paged_problem.h"

namespace nibble::testing {

// Fails the test with the status's message and goes on with an empty value.
template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    ADD_FAILURE() << std::string(value.status().message());
    return T{};
  }
  return std::move(value).value();
}
inline void MustBeOk(const absl::Status& status) {
  EXPECT_TRUE(status.ok()) << std::string(status.message());
}

template <typename T>
gpu::DeviceBuffer<T> Upload(const std::vector<T>& values, cudaStream_t stream) {
  auto buffer = Must(gpu::DeviceBuffer<T>::Create(values.size()));
  MustBeOk(gpu::CopyToDevice(buffer.data(), values.data(), values.size() * sizeof(T), stream));
  return buffer;
}

// A CPU's cache with its keys position by position, in device memory.
struct DeviceCache {
  gpu::DeviceBuffer<char> keys;
  gpu::DeviceBuffer<char> values;
  gpu::DeviceBuffer<float> key_scales;
  gpu::DeviceBuffer<float> value_scales;
  kernels::cuda::KvCacheView view;
};
inline DeviceCache UploadCache(const kernels::KvCacheView& cache, cudaStream_t stream) {
  const auto element = static_cast<int64_t>(SizeOf(cache.dtype));
  std::vector<char> keys(static_cast<size_t>(cache.num_bytes()));
  const char* from = static_cast<const char*>(cache.keys);
  for (int64_t block = 0; block < cache.num_blocks * cache.num_kv_heads; ++block) {
    for (int64_t offset = 0; offset < cache.block_size; ++offset) {
      for (int64_t d = 0; d < cache.head_dim; ++d) {
        std::memcpy(&keys[static_cast<size_t>(
                        ((block * cache.block_size + offset) * cache.head_dim + d) * element)],
                    from + ((block * cache.head_dim + d) * cache.block_size + offset) * element,
                    static_cast<size_t>(element));
      }
    }
  }
  const char* values = static_cast<const char*>(cache.values);
  DeviceCache device;
  device.keys = Upload(keys, stream);
  device.values = Upload(std::vector<char>(values, values + cache.num_bytes()), stream);
  if (cache.key_scales != nullptr) {
    const auto scales = [&](const float* data) {
      return Upload(std::vector<float>(data, data + cache.num_rows()), stream);
    };
    device.key_scales = scales(cache.key_scales);
    device.value_scales = scales(cache.value_scales);
  }
  device.view = {.keys = device.keys.data(),
                 .values = device.values.data(),
                 .key_scales = device.key_scales.data(),
                 .value_scales = device.value_scales.data(),
                 .dtype = cache.dtype,
                 .num_blocks = cache.num_blocks,
                 .num_kv_heads = cache.num_kv_heads,
                 .block_size = cache.block_size,
                 .head_dim = cache.head_dim};
  return device;
}

struct DeviceOptions {
  kernels::cuda::AttentionBackend backend = kernels::cuda::AttentionBackend::kNibble;
  DType activation = DType::kBf16;
  // More than one: the step is planned as one of a captured graph, with this many sequences, and
  // replayed.
  int64_t graph_seqs = 0;
  int num_sms = 0;      // plan as if there were so many; 0: as there are
  int num_layers = 2;   // runs of one plan: all give the same
  int64_t out_gap = 8;  // elements between rows of the output
};

inline float RoundedTo(DType dtype, float value) {
  return dtype == DType::kBf16 ? ToFloat(ToBFloat16(value)) : value;
}

// Queries as the device takes them, for references.
inline SequenceData Rounded(SequenceData sequence, DType activation) {
  for (float& q : sequence.q) q = RoundedTo(activation, q);
  return sequence;
}

template <typename T>
std::vector<T> Encode(const std::vector<float>& values) {
  std::vector<T> encoded;
  for (const float value : values) {
    if constexpr (sizeof(T) == 4) {
      encoded.push_back(value);
    } else {
      encoded.push_back(ToBFloat16(value).bits);
    }
  }
  return encoded;
}

constexpr float kCanary = -64.0F;  // in every type

inline std::unique_ptr<kernels::cuda::DeviceAttention> MakeAttention(
    const DeviceOptions& options, const AttentionShape& shape,
    const kernels::PagedAttentionArgs& args, int64_t max_tokens, const gpu::DeviceCaps& caps) {
  return Must(kernels::cuda::DeviceAttention::Create(
      {.num_heads = shape.num_heads,
       .num_kv_heads = shape.num_kv_heads,
       .head_dim = shape.head_dim,
       .block_size = shape.block_size,
       .kv_dtype = shape.dtype,
       .activation = options.activation},
      {.max_tokens = max_tokens + 3,
       .max_seqs = std::max(args.num_seqs, options.graph_seqs) + 1,
       .max_blocks_per_seq = args.max_blocks_per_seq + 2},
      caps, options.backend));
}

// Captured while another step than that of `args` is planned: one sequence with one token of
// context.
inline gpu::GraphExec CaptureRun(const kernels::PagedAttentionArgs& args, int64_t graph_seqs,
                                 const kernels::cuda::KvCacheView& cache,
                                 const kernels::cuda::AttentionArgs& device_args,
                                 kernels::cuda::DeviceAttention* attention, cudaStream_t stream) {
  const int32_t first_start[] = {0, 1};
  const int32_t first_context[] = {1};
  MustBeOk(attention->Plan({.num_seqs = 1,
                            .query_start = first_start,
                            .context_lens = first_context,
                            .block_tables = args.block_tables,
                            .max_blocks_per_seq = args.max_blocks_per_seq,
                            .graph_seqs = graph_seqs},
                           stream));
  MustBeOk(gpu::GraphExec::BeginCapture(stream));
  MustBeOk(attention->Run(cache, device_args, stream));
  return Must(gpu::GraphExec::EndCapture(stream));
}

// Rows of the step's tokens go to args.out; rows that pad a graph are zeros, all else canaries.
template <typename T>
void ReadResult(const std::vector<T>& result, int64_t stride, int64_t columns, int64_t graph_seqs,
                const kernels::PagedAttentionArgs& args) {
  const int64_t num_tokens = args.query_start[args.num_seqs];
  for (int64_t row = 0; row < std::ssize(result) / stride; ++row) {
    for (int64_t column = 0; column < stride; ++column) {
      const T element = result[static_cast<size_t>(row * stride + column)];
      float value = 0.0F;
      if constexpr (sizeof(T) == 4) {
        value = element;
      } else {
        value = ToFloat(BFloat16{element});
      }
      if (row < num_tokens && column < columns) {
        args.out[row * args.out_stride + column] = value;
      } else if (row < graph_seqs && column < columns) {
        ASSERT_EQ(value, 0.0F) << "padding row " << row << " column " << column;
      } else {
        ASSERT_EQ(value, kCanary) << "canary in row " << row << " column " << column;
      }
    }
  }
}

// What AttendWith() wants: runs a step on the device and writes args.out.
template <typename T>
void AttendOnDevice(const DeviceOptions& options, const AttentionShape& shape,
                    const kernels::KvCacheView& cpu_cache,
                    const kernels::PagedAttentionArgs& args) {
  namespace cuda = kernels::cuda;
  const auto devices = Must(gpu::ListDevices());
  ASSERT_FALSE(devices.empty());
  gpu::DeviceCaps caps = devices[0];
  if (options.num_sms > 0) caps.num_sms = options.num_sms;
  const gpu::Stream stream = Must(gpu::Stream::Create());
  const DeviceCache cache = UploadCache(cpu_cache, stream.get());

  const int64_t num_tokens = args.query_start[args.num_seqs];
  const int64_t columns = shape.num_heads * shape.head_dim;
  const int64_t max_tokens = std::max(num_tokens, options.graph_seqs);
  const int64_t q_stride = columns + 16;
  const int64_t out_stride = columns + options.out_gap;
  std::vector<float> q(static_cast<size_t>(max_tokens * q_stride),
                       std::numeric_limits<float>::quiet_NaN());
  for (int64_t token = 0; token < num_tokens; ++token) {
    std::copy_n(args.q + token * args.q_stride, columns, q.data() + token * q_stride);
  }
  const auto device_q = Upload(Encode<T>(q), stream.get());
  const auto canaries =
      Encode<T>(std::vector<float>(static_cast<size_t>((max_tokens + 1) * out_stride), kCanary));
  const auto device_out = Upload(canaries, stream.get());

  const auto attention = MakeAttention(options, shape, args, max_tokens, caps);
  ASSERT_NE(attention, nullptr);
  const cuda::AttentionStep step{.num_seqs = args.num_seqs,
                                 .query_start = args.query_start,
                                 .context_lens = args.context_lens,
                                 .block_tables = args.block_tables,
                                 .max_blocks_per_seq = args.max_blocks_per_seq,
                                 .graph_seqs = options.graph_seqs};
  const cuda::AttentionArgs device_args{
      .q = {.data = device_q.data(), .dtype = options.activation, .stride = q_stride},
      .out = {.data = device_out.data(), .dtype = options.activation, .stride = out_stride},
      .scale = args.scale,
      .sliding_window = args.sliding_window};

  gpu::GraphExec graph;
  if (options.graph_seqs > 0) {
    graph = CaptureRun(args, options.graph_seqs, cache.view, device_args, attention.get(),
                       stream.get());
  }
  MustBeOk(attention->Plan(step, stream.get()));
  std::vector<T> first_result;
  for (int layer = 0; layer < options.num_layers; ++layer) {
    std::vector<T> out(canaries.size());
    MustBeOk(gpu::CopyToDevice(device_out.data(), canaries.data(), canaries.size() * sizeof(T),
                               stream.get()));
    if (graph) {
      MustBeOk(graph.Launch(stream.get()));
    } else {
      MustBeOk(attention->Run(cache.view, device_args, stream.get()));
    }
    MustBeOk(gpu::CopyToHost(out.data(), device_out.data(), out.size() * sizeof(T), stream.get()));
    MustBeOk(stream.Synchronize());
    if (layer == 0) first_result = out;
    EXPECT_EQ(std::memcmp(out.data(), first_result.data(), out.size() * sizeof(T)), 0)
        << "run " << layer << " of a plan has other bits than the first";
  }
  ReadResult(first_result, out_stride, columns, options.graph_seqs, args);
}

inline std::vector<std::vector<float>> AttendOnDevice(const AttentionShape& shape,
                                                      const std::vector<Chunk>& chunks,
                                                      const DeviceOptions& options,
                                                      ThreadPool* pool, uint32_t seed = 1) {
  return AttendWith(
      shape, chunks, pool, seed,
      [&](const kernels::KvCacheView& cache, const kernels::PagedAttentionArgs& args) {
        if (options.activation == DType::kF32) {
          AttendOnDevice<float>(options, shape, cache, args);
        } else {
          AttendOnDevice<uint16_t>(options, shape, cache, args);
        }
      });
}

}  // namespace nibble::testing
