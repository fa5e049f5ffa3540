// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/nccl_communicator.h"

#include <algorithm>
#include <vector>

#include "comm/codec/cuda/codec.h"
#include "comm/flash/group_range.h"
#include "comm/gpu/agree.h"
#include "comm/gpu/device_args.h"
#include "comm/gpu/p2p_plan.h"

namespace nibble::comm {
namespace {

// Larger messages go in parts: what they become depends on groups alone.
constexpr int64_t kMaxPartValues = int64_t{4} << 20;

}  // namespace

// Groups that are summed at a time, and where.
struct NcclCommunicator::Part {
  CodecDesc codec;
  cuda::DeviceRows rows;
  GroupRange range;

  GroupRange StripeOfRank(int rank, int size) const { return StripeOf(range, rank, size); }
  size_t Bytes(int rank, int size) const {
    return static_cast<size_t>(EncodedBytes(codec, StripeOfRank(rank, size).size()));
  }
};

// What goes to a peer, and what comes from it.
struct NcclCommunicator::Parcel {
  const uint8_t* out;
  size_t out_bytes;
  uint8_t* in;
  size_t in_bytes;
};

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Create(
    absl::StatusOr<const NcclLibrary*> nccl, Communicator* host,
    const DeviceCommunicatorOptions& options) {
  if (host->size() > cuda::kMaxPieces) {
    return InvalidArgument("{} ranks over NCCL, the limit is {}", host->size(), cuda::kMaxPieces);
  }
  NIBBLE_RETURN_IF_ERROR(Agree(host, nccl.status()));
  std::unique_ptr<NcclCommunicator> communicator(new NcclCommunicator(host, options.max_values));
  const auto allocate = [&]() -> absl::Status {
    // The widest group: 128 values of 8 bits with spikes are more than 32 of float32, which has no
    // larger groups. A stripe may have a group more than others.
    const int64_t groups = std::min(options.max_values, kMaxPartValues) / 32 / host->size() + 2;
    communicator->slot_bytes_ = EncodedBytes({.bits = 8, .spikes = true}, groups);
    const auto bytes =
        static_cast<size_t>(communicator->slot_bytes_) * static_cast<size_t>(host->size());
    for (gpu::DeviceBuffer<uint8_t>* buffer :
         {&communicator->out_, &communicator->in_, &communicator->sums_}) {
      NIBBLE_ASSIGN_OR_RETURN(*buffer, gpu::DeviceBuffer<uint8_t>::Create(bytes));
    }
    return absl::OkStatus();
  };
  NIBBLE_RETURN_IF_ERROR(Agree(host, allocate()));
  NIBBLE_ASSIGN_OR_RETURN(communicator->session_, NcclSession::Create(*nccl, host, options));
  return communicator;
}

absl::Status NcclCommunicator::AllReduce(const DeviceAllReduceArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckAllReduce(args, max_values_));
  NIBBLE_RETURN_IF_ERROR(Check());
  if (args.num_rows == 0 || args.row_size == 0) return absl::OkStatus();
  const AllReduceChoice& choice = host_->policy().For(args.num_rows * args.row_size * 2);
  const CodecDesc codec = DeviceCodec(choice.codec, args.exact, args.dtype == DType::kBf16);
  const bool has_groups = codec.is_integer();
  const RowGroups groups = {.row_size = has_groups ? args.row_size : args.num_rows * args.row_size,
                            .group_size = codec.group_size};
  const int64_t count = (has_groups ? args.num_rows : 1) * groups.groups_per_row();
  // A part's stripes fit their slots, whose groups are counted in 32 values each.
  const int64_t part_groups = std::min(max_values_, kMaxPartValues) / 32 + 1;
  for (int64_t begin = 0; begin < count; begin += part_groups) {
    const Part part = {.codec = codec,
                       .rows = {.data = args.data, .dtype = args.dtype, .groups = groups},
                       .range = {begin, std::min(begin + part_groups, count)}};
    NIBBLE_RETURN_IF_ERROR(ReducePart(part, stream));
  }
  return session_->Watch(stream);
}

template <typename ParcelOf>
absl::Status NcclCommunicator::Exchange(const ParcelOf& parcel_of, cudaStream_t stream) {
  const NcclLibrary& nccl = session_->library();
  return session_->Run([&](NcclComm* comm) {
    NcclResult result = NcclResult::kSuccess;
    const auto keep = [&](NcclResult one) {
      if (one != NcclResult::kSuccess && one != NcclResult::kInProgress) result = one;
    };
    for (int i = 1; i < size(); ++i) {
      const int peer = (rank() + i) % size();
      const Parcel parcel = parcel_of(peer);
      keep(nccl.send(parcel.out, parcel.out_bytes, NcclType::kInt8, peer, comm, stream));
      keep(nccl.recv(parcel.in, parcel.in_bytes, NcclType::kInt8, peer, comm, stream));
    }
    return result;
  });
}

absl::Status NcclCommunicator::ReducePart(const Part& part, cudaStream_t stream) {
  for (int r = 0; r < size(); ++r) {
    const GroupRange stripe = part.StripeOfRank(r, size());
    NIBBLE_RETURN_IF_ERROR(cuda::Encode(part.codec, part.rows, stripe.begin, stripe.size(),
                                        out_.data() + r * slot_bytes_, stream));
  }
  const size_t own_bytes = part.Bytes(rank(), size());
  NIBBLE_RETURN_IF_ERROR(Exchange(
      [&](int peer) -> Parcel {
        return {out_.data() + peer * slot_bytes_, part.Bytes(peer, size()),
                in_.data() + peer * slot_bytes_, own_bytes};
      },
      stream));
  std::vector<const uint8_t*> pieces;
  for (int r = 0; r < size(); ++r) {
    pieces.push_back((r == rank() ? out_ : in_).data() + r * slot_bytes_);
  }
  NIBBLE_RETURN_IF_ERROR(cuda::ReduceEncoded(part.codec, pieces.data(), size(),
                                             part.StripeOfRank(rank(), size()).size(),
                                             sums_.data() + rank() * slot_bytes_, stream));
  NIBBLE_RETURN_IF_ERROR(Exchange(
      [&](int peer) -> Parcel {
        return {sums_.data() + rank() * slot_bytes_, own_bytes, sums_.data() + peer * slot_bytes_,
                part.Bytes(peer, size())};
      },
      stream));
  for (int r = 0; r < size(); ++r) {
    const GroupRange stripe = part.StripeOfRank(r, size());
    const uint8_t* const sum = sums_.data() + r * slot_bytes_;
    NIBBLE_RETURN_IF_ERROR(
        cuda::DecodeSum(part.codec, part.rows, &sum, 1, stripe.begin, stripe.size(), stream));
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::AllGather(const void* send, int64_t bytes, void* recv,
                                         cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckAllGather(send, bytes, recv));
  NIBBLE_RETURN_IF_ERROR(Check());
  if (bytes == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(session_->Run([&](NcclComm* comm) {
    return session_->library().all_gather(send, recv, static_cast<size_t>(bytes), NcclType::kInt8,
                                          comm, stream);
  }));
  return session_->Watch(stream);
}

void NcclCommunicator::Abort(const std::string& reason) {
  session_->Abort(absl::AbortedError(reason));
  host_->Abort(reason);
}

}  // namespace nibble::comm
