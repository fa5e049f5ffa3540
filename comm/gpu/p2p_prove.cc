// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a P2pCommunicator finds out about the ranks' memory before it is used: whether bytes arrive,
// whether sums are right, how long they take.

#include <algorithm>
#include <bit>
#include <iterator>
#include <vector>

#include "base/float16.h"
#include "comm/gpu/agree.h"
#include "comm/gpu/device_policy.h"
#include "comm/gpu/p2p_communicator.h"
#include "comm/gpu/p2p_kernels.h"
#include "comm/gpu/p2p_self_test.h"

namespace nibble::comm {
namespace {

constexpr int64_t kMinMeasuredBytes = int64_t{1} << 10;
constexpr int64_t kMaxMeasuredBytes = int64_t{64} << 20;
constexpr int kTimedRuns = 4;

}  // namespace

absl::Status P2pCommunicator::Probe(uint32_t nonce) {
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
  NIBBLE_RETURN_IF_ERROR(LaunchP2pProbeWrite(link_, nonce, stream.get()));
  return stream.Synchronize();
}

absl::Status P2pCommunicator::ReadProbe(uint32_t nonce) {
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
  constexpr size_t kCount = 2 * kMaxP2pRanks;
  NIBBLE_ASSIGN_OR_RETURN(const auto device, gpu::DeviceBuffer<uint32_t>::Create(kCount));
  std::vector<uint32_t> found(kCount);
  NIBBLE_RETURN_IF_ERROR(LaunchP2pProbeRead(link_, device.data(), stream.get()));
  NIBBLE_RETURN_IF_ERROR(
      gpu::CopyToHost(found.data(), device.data(), device.size_bytes(), stream.get()));
  NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
  for (int peer = 0; peer < size(); ++peer) {
    const auto idx = static_cast<size_t>(peer);
    if (peer != rank() && found[idx] != ProbeToken(nonce, peer, rank())) {
      return Unavailable("what rank {} wrote here did not arrive", peer);
    }
    if (found[kMaxP2pRanks + idx] != ProbeToken(nonce, peer, peer)) {
      return Unavailable("the memory of rank {} reads otherwise than it was written", peer);
    }
  }
  return absl::OkStatus();
}

absl::Status P2pCommunicator::SelfTest() {
  const int64_t max_values = std::min<int64_t>(options_.max_values, kSelfTestValues);
  if (size() == 1 || max_values < kSelfTestRows) return absl::OkStatus();
  // All have what they need before anybody's kernel waits for a peer, and keep it until all are
  // through: in one process the driver may wait for that kernel where it allocates and frees.
  auto stream = gpu::Stream::Create();
  NIBBLE_RETURN_IF_ERROR(Agree(host_, stream.status()));
  auto data = gpu::DeviceBuffer<float>::Create(static_cast<size_t>(kSelfTestValues));
  NIBBLE_RETURN_IF_ERROR(Agree(host_, data.status()));
  const absl::Status status = SumKnownValues(max_values / kSelfTestRows, data->data(), *stream);
  if (!status.ok()) {
    // Nobody waits for a rank that has given up.
    EndKernels();
    stream->Synchronize().IgnoreError();
    abort_stream_.Synchronize().IgnoreError();
  }
  return Agree(host_, status);
}

absl::Status P2pCommunicator::SumKnownValues(int64_t row_size, float* data,
                                             const gpu::Stream& stream) {
  for (const SelfTestCase& test : SelfTestCases(policy_)) {
    std::vector<float> values = SelfTestInput(rank(), row_size, test.dtype);
    const bool is_bf16 = test.dtype == DType::kBf16;
    std::vector<BFloat16> halves(is_bf16 ? values.size() : 0);
    std::transform(values.begin(), values.begin() + std::ssize(halves), halves.begin(), ToBFloat16);
    void* const rows = is_bf16 ? static_cast<void*>(halves.data()) : values.data();
    const size_t bytes = values.size() * SizeOf(test.dtype);
    NIBBLE_RETURN_IF_ERROR(gpu::CopyToDevice(data, rows, bytes, stream.get()));
    NIBBLE_RETURN_IF_ERROR(AllReduceBy(
        {.algorithm = test.algorithm, .codec = test.codec},
        {.data = data, .dtype = test.dtype, .num_rows = kSelfTestRows, .row_size = row_size},
        stream.get()));
    NIBBLE_RETURN_IF_ERROR(gpu::CopyToHost(rows, data, bytes, stream.get()));
    NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
    NIBBLE_RETURN_IF_ERROR(Check());
    for (size_t i = 0; i < halves.size(); ++i) values[i] = ToFloat(halves[i]);
    NIBBLE_RETURN_IF_ERROR(CheckSelfTest(test, size(), row_size, values));
  }
  return absl::OkStatus();
}

struct P2pCommunicator::Stopwatch {
  gpu::Stream stream;
  gpu::Event begin;
  gpu::Event end;

  static absl::StatusOr<Stopwatch> Create() {
    Stopwatch watch;
    NIBBLE_ASSIGN_OR_RETURN(watch.stream, gpu::Stream::Create());
    NIBBLE_ASSIGN_OR_RETURN(watch.begin, gpu::Event::Create(/*timing=*/true));
    NIBBLE_ASSIGN_OR_RETURN(watch.end, gpu::Event::Create(/*timing=*/true));
    return watch;
  }
};

absl::Status P2pCommunicator::Measure() {
  const int64_t max_bytes = std::min(2 * options_.max_values, kMaxMeasuredBytes);
  if (size() == 1 || max_bytes < kMinMeasuredBytes) return absl::OkStatus();
  const int64_t row_bytes = std::max<int64_t>(2 * options_.row_size, kMinMeasuredBytes);
  const auto min_bytes =
      std::min(static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(row_bytes))), max_bytes);
  auto watch = Stopwatch::Create();
  NIBBLE_RETURN_IF_ERROR(Agree(host_, watch.status()));
  auto data = gpu::DeviceBuffer<uint8_t>::Create(static_cast<size_t>(max_bytes));
  NIBBLE_RETURN_IF_ERROR(Agree(host_, data.status()));
  NIBBLE_RETURN_IF_ERROR(
      Agree(host_, gpu::ZeroDevice(data->data(), data->size_bytes(), watch->stream.get())));
  NIBBLE_ASSIGN_OR_RETURN(
      policy_,
      MeasureDevicePolicy({.codec = options_.codec, .min_bytes = min_bytes, .max_bytes = max_bytes},
                          host_, [&](const AllReduceChoice& choice, int64_t message_bytes) {
                            return Time(choice, message_bytes, data->data(), *watch);
                          }));
  return absl::OkStatus();
}

absl::StatusOr<double> P2pCommunicator::Time(const AllReduceChoice& choice, int64_t message_bytes,
                                             void* data, const Stopwatch& watch) {
  const int64_t num_values = std::max<int64_t>(message_bytes / 2, 1);
  const int64_t row_size =
      options_.row_size > 0 ? std::min(options_.row_size, num_values) : num_values;
  const DeviceAllReduceArgs args = {
      .data = data, .num_rows = num_values / row_size, .row_size = row_size};
  const absl::Status status = TimeRuns(choice, args, watch);
  if (!status.ok()) {
    // What was launched is over, here and where this rank was waited for, before all is given up.
    EndKernels();
    watch.stream.Synchronize().IgnoreError();
    abort_stream_.Synchronize().IgnoreError();
    return status;
  }
  NIBBLE_ASSIGN_OR_RETURN(const float ms, gpu::ElapsedMs(watch.begin, watch.end));
  return static_cast<double>(ms) * 1e-3 / kTimedRuns;
}

absl::Status P2pCommunicator::TimeRuns(const AllReduceChoice& choice,
                                       const DeviceAllReduceArgs& args, const Stopwatch& watch) {
  NIBBLE_RETURN_IF_ERROR(AllReduceBy(choice, args, watch.stream.get()));  // ranks meet
  NIBBLE_RETURN_IF_ERROR(watch.begin.Record(watch.stream.get()));
  for (int run = 0; run < kTimedRuns; ++run) {
    NIBBLE_RETURN_IF_ERROR(AllReduceBy(choice, args, watch.stream.get()));
  }
  NIBBLE_RETURN_IF_ERROR(watch.end.Record(watch.stream.get()));
  NIBBLE_RETURN_IF_ERROR(watch.stream.Synchronize());
  return Check();
}

}  // namespace nibble::comm
