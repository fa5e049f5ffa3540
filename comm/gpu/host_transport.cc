// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/host_transport.h"

#include <algorithm>

#include "base/cuda/error.h"
#include "base/float16.h"
#include "comm/gpu/device_args.h"

namespace nibble::comm {
namespace {

// Of an AllGather, sent at a time.
constexpr int64_t kPartBytes = int64_t{1} << 20;
constexpr int64_t kConvertGrain = int64_t{1} << 14;

absl::Status Synchronize(cudaStream_t stream) {
  return gpu::ToStatus(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostTransport>> HostTransport::Create(
    Communicator* host, const DeviceCommunicatorOptions& options, ThreadPool* pool) {
  std::unique_ptr<HostTransport> transport(new HostTransport(host, pool));
  transport->max_values_ = options.max_values;
  const auto count = static_cast<size_t>(options.max_values);
  NIBBLE_ASSIGN_OR_RETURN(transport->values_, gpu::PinnedBuffer<float>::Create(count));
  NIBBLE_ASSIGN_OR_RETURN(transport->halves_, gpu::PinnedBuffer<uint16_t>::Create(count));
  NIBBLE_ASSIGN_OR_RETURN(transport->parts_, gpu::PinnedBuffer<std::byte>::Create(
                                                 static_cast<size_t>(kPartBytes) *
                                                 (static_cast<size_t>(host->size()) + 1)));
  NIBBLE_ASSIGN_OR_RETURN(transport->copied_, gpu::Event::Create());
  return transport;
}

absl::Status HostTransport::AllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckAllReduce(args, max_values_));
  NIBBLE_RETURN_IF_ERROR(Check());
  return End(RunAllReduce(args, stream));
}

absl::Status HostTransport::RunAllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream) {
  const int64_t count = args.num_rows * args.row_size;
  if (size() == 1 || count == 0) return absl::OkStatus();
  const auto bytes = static_cast<size_t>(count) * SizeOf(args.dtype);
  const bool is_bf16 = args.dtype == DType::kBf16;
  void* const staged = is_bf16 ? static_cast<void*>(halves_.data()) : values_.data();
  NIBBLE_RETURN_IF_ERROR(copied_.Synchronize());
  NIBBLE_RETURN_IF_ERROR(gpu::CopyToHost(staged, args.data, bytes, stream));
  NIBBLE_RETURN_IF_ERROR(Synchronize(stream));
  if (is_bf16) {
    pool_->ParallelFor(count, kConvertGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        values_.data()[i] = ToFloat(BFloat16{halves_.data()[i]});
      }
    });
  }
  NIBBLE_RETURN_IF_ERROR(host_->AllReduce({.data = values_.data(),
                                           .num_rows = args.num_rows,
                                           .row_size = args.row_size,
                                           .exact = args.exact},
                                          pool_));
  if (is_bf16) {
    pool_->ParallelFor(count, kConvertGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        halves_.data()[i] = ToBFloat16(values_.data()[i]).bits;
      }
    });
  }
  NIBBLE_RETURN_IF_ERROR(gpu::CopyToDevice(args.data, staged, bytes, stream));
  return copied_.Record(stream);
}

absl::Status HostTransport::AllGather(const void* send, int64_t bytes, void* recv,
                                      cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckAllGather(send, bytes, recv));
  NIBBLE_RETURN_IF_ERROR(Check());
  return End(RunAllGather(send, bytes, recv, stream));
}

absl::Status HostTransport::RunAllGather(const void* send, int64_t bytes, void* recv,
                                         cudaStream_t stream) {
  std::byte* const received = parts_.data() + kPartBytes;
  for (int64_t done = 0; done < bytes; done += kPartBytes) {
    const auto part = static_cast<size_t>(std::min(kPartBytes, bytes - done));
    NIBBLE_RETURN_IF_ERROR(copied_.Synchronize());
    NIBBLE_RETURN_IF_ERROR(
        gpu::CopyToHost(parts_.data(), static_cast<const std::byte*>(send) + done, part, stream));
    NIBBLE_RETURN_IF_ERROR(Synchronize(stream));
    NIBBLE_RETURN_IF_ERROR(host_->AllGather(parts_.data(), part, received));
    for (int r = 0; r < size(); ++r) {
      NIBBLE_RETURN_IF_ERROR(gpu::CopyToDevice(static_cast<std::byte*>(recv) + r * bytes + done,
                                               received + static_cast<size_t>(r) * part, part,
                                               stream));
    }
    NIBBLE_RETURN_IF_ERROR(copied_.Record(stream));
  }
  return absl::OkStatus();
}

absl::Status HostTransport::Check() {
  const std::lock_guard lock(mutex_);
  return broken_;
}

void HostTransport::Abort(const std::string& reason) {
  (void)End(absl::AbortedError(reason));
  host_->Abort(reason);
}

absl::Status HostTransport::End(absl::Status status) {
  if (status.ok()) return status;
  const std::lock_guard lock(mutex_);
  if (broken_.ok()) broken_ = status;
  return status;
}

}  // namespace nibble::comm
