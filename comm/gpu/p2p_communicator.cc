// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/p2p_communicator.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <utility>
#include <vector>

#include "base/cuda/error.h"
#include "base/log.h"
#include "comm/gpu/agree.h"
#include "comm/gpu/device_args.h"
#include "comm/gpu/device_policy.h"
#include "comm/gpu/p2p_kernels.h"

namespace nibble::comm {
namespace {

// Every group passes the wrap within its first operations, in tests as in production.
constexpr uint32_t kFirstEpoch = 0xffff'fffcU;
// A device that is asked for the first time answers soon or not at all.
constexpr std::chrono::seconds kProbeTimeout{10};

uint32_t LoadWord(const uint32_t& word) {
  return std::atomic_ref<uint32_t>(const_cast<uint32_t&>(word)).load(std::memory_order_acquire);
}

// Clocks of a device that runs at its highest rate; at others they last longer.
absl::StatusOr<int64_t> ClocksOf(std::chrono::nanoseconds time, int device) {
  int khz = 0;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, device));
  return static_cast<int64_t>(static_cast<double>(time.count()) * khz * 1e-6);
}

// The fewest multiprocessors that any rank's device has, as blocks wait for those of the others.
absl::StatusOr<int> CommonBlocks(Communicator* host, int num_sms) {
  std::vector<int> all(static_cast<size_t>(host->size()));
  NIBBLE_RETURN_IF_ERROR(host->AllGather(&num_sms, sizeof(num_sms), all.data()));
  return std::clamp(*std::min_element(all.begin(), all.end()), 1, kMaxP2pBlocks);
}

P2pMessage MessageOf(const CodecDesc& codec, const DeviceAllReduceArgs& args, Algorithm algorithm) {
  // What has no groups is one long row, which leaves none to be filled up.
  const bool has_groups = codec.is_integer();
  return {.codec = codec,
          .groups = {.row_size = has_groups ? args.row_size : args.num_rows * args.row_size,
                     .group_size = codec.group_size},
          .num_rows = has_groups ? args.num_rows : 1,
          .algorithm = algorithm};
}

}  // namespace

absl::StatusOr<std::unique_ptr<P2pCommunicator>> P2pCommunicator::Create(
    Communicator* host, const DeviceCommunicatorOptions& options) {
  const int64_t region_bytes = P2pRegionBytes(host->size(), options.max_values);
  NIBBLE_ASSIGN_OR_RETURN(P2pMemory memory,
                          P2pMemory::Create(host, options.caps, P2pMemoryBytes(region_bytes, 2)));
  std::unique_ptr<P2pCommunicator> p2p(new P2pCommunicator(host, options, std::move(memory)));
  NIBBLE_RETURN_IF_ERROR(Agree(host, p2p->Prepare(region_bytes)));
  uint32_t nonce = std::random_device()();
  NIBBLE_RETURN_IF_ERROR(host->Broadcast(&nonce, sizeof(nonce), 0));
  NIBBLE_RETURN_IF_ERROR(Agree(host, p2p->Probe(nonce)));
  NIBBLE_RETURN_IF_ERROR(Agree(host, p2p->ReadProbe(nonce)));
  NIBBLE_ASSIGN_OR_RETURN(p2p->limits_.max_blocks, CommonBlocks(host, options.caps.num_sms));
  NIBBLE_RETURN_IF_ERROR(p2p->SelfTest());
  const auto clocks = ClocksOf(options.timeout, options.caps.index);
  NIBBLE_RETURN_IF_ERROR(Agree(host, clocks.status()));
  p2p->link_.timeout_clocks = *clocks;
  if (options.measure_policy && options.policy.choices.empty()) {
    NIBBLE_RETURN_IF_ERROR(p2p->Measure());
  }
  return p2p;
}

P2pCommunicator::P2pCommunicator(Communicator* host, const DeviceCommunicatorOptions& options,
                                 P2pMemory memory)
    : host_(host),
      options_(options),
      memory_(std::move(memory)),
      policy_(options.policy.choices.empty() ? UnmeasuredDevicePolicy(host->policy(), host->size())
                                             : options.policy) {}

P2pCommunicator::~P2pCommunicator() {
  if (words_.data() == nullptr) return;
  const auto device = gpu::DeviceGuard::Create(options_.caps.index);
  // Nothing that was begun here reaches memory of peers when this ends, as they are told then:
  // kernels, which the driver waits for before it frees what they use, wait for nobody from here
  // on, and what Abort() copies is over.
  std::atomic_ref<uint32_t>(words_.data()->aborted).store(1, std::memory_order_release);
  if (abort_stream_.get() != nullptr) abort_stream_.Synchronize().IgnoreError();
}

absl::Status P2pCommunicator::Prepare(int64_t region_bytes) {
  NIBBLE_ASSIGN_OR_RETURN(progress_, gpu::DeviceBuffer<P2pProgress>::Create(1));
  NIBBLE_ASSIGN_OR_RETURN(words_, gpu::PinnedBuffer<P2pHostWords>::Create(1));
  NIBBLE_ASSIGN_OR_RETURN(ones_, gpu::PinnedBuffer<uint32_t>::Create(1));
  NIBBLE_ASSIGN_OR_RETURN(abort_stream_, gpu::Stream::Create());
  NIBBLE_ASSIGN_OR_RETURN(const int64_t clocks, ClocksOf(kProbeTimeout, options_.caps.index));
  *words_.data() = {};
  *ones_.data() = 1;
  link_ = {.rank = host_->rank(),
           .size = host_->size(),
           .region_bytes = region_bytes,
           .timeout_clocks = clocks,
           .progress = progress_.data(),
           .host = words_.data()};
  std::copy(memory_.of_rank().begin(), memory_.of_rank().end(), link_.memory);
  limits_ = {.num_ranks = host_->size(), .max_blocks = 1, .region_bytes = region_bytes};

  const P2pProgress progress = {.epoch = kFirstEpoch};
  P2pFlags flags = {};
  std::fill_n(&flags.pieces[0][0], kMaxP2pBlocks * kMaxP2pRanks, kFirstEpoch - 1);
  std::fill_n(&flags.sums[0][0], kMaxP2pBlocks * kMaxP2pRanks, kFirstEpoch - 1);
  NIBBLE_RETURN_IF_ERROR(
      gpu::CopyToDevice(progress_.data(), &progress, sizeof(progress), abort_stream_.get()));
  NIBBLE_RETURN_IF_ERROR(gpu::CopyToDevice(memory_.of_rank()[static_cast<size_t>(link_.rank)],
                                           &flags, sizeof(flags), abort_stream_.get()));
  return abort_stream_.Synchronize();
}

absl::Status P2pCommunicator::AllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckAllReduce(args, options_.max_values));
  NIBBLE_RETURN_IF_ERROR(Check());
  return AllReduceBy(policy_.For(args.num_rows * args.row_size * 2), args, stream);
}

absl::Status P2pCommunicator::AllReduceBy(const AllReduceChoice& choice,
                                          const DeviceAllReduceArgs& args, cudaStream_t stream) {
  if (size() == 1 || args.num_rows == 0 || args.row_size == 0) return absl::OkStatus();
  const CodecDesc codec = DeviceCodec(choice.codec, args.exact, args.dtype == DType::kBf16);
  const P2pMessage message = MessageOf(codec, args, choice.algorithm);
  NIBBLE_ASSIGN_OR_RETURN(const P2pPlan plan, PlanMessage(message, limits_));
  return LaunchP2pAllReduce(link_, plan, codec,
                            {.data = args.data, .dtype = args.dtype, .groups = message.groups},
                            stream);
}

absl::StatusOr<P2pCommunicator::RowPlan> P2pCommunicator::PlanRows(
    const DeviceAllReduceArgs& args) const {
  NIBBLE_RETURN_IF_ERROR(CheckAllReduce(args, options_.max_values));
  const AllReduceChoice& choice = policy_.For(args.num_rows * args.row_size * 2);
  RowPlan rows;
  rows.codec = DeviceCodec(choice.codec, args.exact, args.dtype == DType::kBf16);
  const P2pMessage message = {
      .codec = rows.codec,
      .groups = {.row_size = args.row_size, .group_size = rows.codec.group_size},
      .num_rows = args.num_rows,
      .algorithm = choice.algorithm,
      .whole_rows = true};
  NIBBLE_ASSIGN_OR_RETURN(rows.plan, PlanMessage(message, limits_));
  return rows;
}

absl::Status P2pCommunicator::AllGather(const void* send, int64_t bytes, void* recv,
                                        cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckAllGather(send, bytes, recv));
  NIBBLE_RETURN_IF_ERROR(Check());
  return LaunchP2pAllGather(link_, send, bytes, recv, limits_.max_blocks, stream);
}

absl::Status P2pCommunicator::Fault() const {
  const uint32_t fault = LoadWord(words_.data()->fault);
  if (fault == 0) return absl::OkStatus();
  switch (FaultKind(fault)) {
    case P2pFaultKind::kTimeout:
      return Unavailable("a collective on the devices: rank {} did not come within {:.1f} s",
                         FaultRank(fault), std::chrono::duration<double>(options_.timeout).count());
    case P2pFaultKind::kPeerAborted:
      return Unavailable("a collective on the devices: rank {} has given up", FaultRank(fault));
    case P2pFaultKind::kAborted:
      break;
  }
  return absl::AbortedError("a collective on the devices was aborted");
}

absl::Status P2pCommunicator::Check() {
  const std::lock_guard lock(mutex_);
  if (broken_.ok()) broken_ = Fault();
  return broken_;
}

void P2pCommunicator::Abort(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (broken_.ok()) broken_ = absl::AbortedError(reason);
  }
  EndKernels();
  host_->Abort(reason);
}

void P2pCommunicator::EndKernels() {
  std::atomic_ref<uint32_t>(words_.data()->aborted).store(1, std::memory_order_release);
  // A kernel of this rank that waits tells the peers; where there is none, this does. Nobody waits
  // for it: the device may hang.
  const auto device = gpu::DeviceGuard::Create(options_.caps.index);
  for (int peer = 0; device.ok() && peer < size(); ++peer) {
    if (peer == rank()) continue;
    auto* const flags = reinterpret_cast<P2pFlags*>(link_.memory[peer]);
    const absl::Status status =
        gpu::ToStatus(cudaMemcpyAsync(&flags->aborted[rank()], ones_.data(), sizeof(uint32_t),
                                      cudaMemcpyDefault, abort_stream_.get()),
                      "cudaMemcpyAsync");
    if (!status.ok()) log::Warning("rank {} is not told to end: {}", peer, status.ToString());
  }
  if (cudaStreamQuery(abort_stream_.get()) != cudaSuccess) (void)cudaGetLastError();
}

}  // namespace nibble::comm
