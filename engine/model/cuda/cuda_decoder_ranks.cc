// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the ranks of a CudaDecoderModel exchange: sums and logits in a stage on their devices, the
// residual stream between stages by way of the host.

#include "base/cuda/error.h"
#include "base/log.h"
#include "comm/gpu/p2p_communicator.h"
#include "engine/model/cuda/cuda_decoder.h"

namespace nibble::engine {
namespace {

comm::DeviceTransport ToTransport(CudaTransport transport) {
  switch (transport) {
    case CudaTransport::kP2p:
      return comm::DeviceTransport::kP2p;
    case CudaTransport::kHost:
      return comm::DeviceTransport::kHost;
    case CudaTransport::kAuto:
      break;
  }
  return comm::DeviceTransport::kAuto;
}

}  // namespace

void CudaDecoderModel::SetCommunicator(comm::Communicator* communicator) {
  // For what is given back here. Where there is none the device is lost, and the next step says so.
  const auto guard = gpu::DeviceGuard::Create(caps_.index);
  if (!guard.ok()) log::Error("{}", guard.status().ToString());
  host_communicator_ = communicator;
  device_policy_ = {};
  graphs_.clear();
  const std::lock_guard lock(communicator_mutex_);
  communicator_ = nullptr;  // made anew by the next step, which all ranks come to
  connecting_ = std::stop_source();
}

void CudaDecoderModel::Abort(const std::string& reason) {
  const auto guard = gpu::DeviceGuard::Create(caps_.index);
  if (!guard.ok()) log::Error("{}", guard.status().ToString());
  const std::lock_guard lock(communicator_mutex_);
  connecting_.request_stop();
  if (communicator_ != nullptr) communicator_->Abort(reason);
}

absl::Status CudaDecoderModel::CheckLinks() const {
  if (place_.num_stages > 1 && stage_link_ == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("rank {} of stage {} of {} has no link to the other stages yet", place_.rank,
                    place_.stage, place_.num_stages));
  }
  if (place_.size == 1) return absl::OkStatus();
  if (host_communicator_ == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("rank {} of {} has no communicator yet", place_.rank, place_.size));
  }
  if (host_communicator_->rank() != place_.rank || host_communicator_->size() != place_.size) {
    return InvalidArgument("the communicator is of rank {} of {}, the weights are of rank {} of {}",
                           host_communicator_->rank(), host_communicator_->size(), place_.rank,
                           place_.size);
  }
  return absl::OkStatus();
}

absl::StatusOr<comm::AllReducePolicy> CudaDecoderModel::ConnectDevices(
    const comm::AllReducePolicy& known, ThreadPool* pool) {
  const auto connect = [&]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(lost_);
    NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(caps_.index));
    return Connect(pool);
  };
  device_policy_ = known;
  const absl::Status status = Diagnose(connect());
  if (!status.ok()) return status;
  return device_policy_;
}

// All ranks reserve alike and get the same plans, so that they come here at the same step.
absl::Status CudaDecoderModel::Connect(ThreadPool* pool) {
  if (place_.size == 1) return absl::OkStatus();
  if (communicator_ != nullptr && communicator_rows_ >= row_capacity_) return absl::OkStatus();
  graphs_.clear();
  std::stop_token stop;
  {
    // All ranks give the memory back that their peers have mapped, before they want more.
    const std::lock_guard lock(communicator_mutex_);
    communicator_ = nullptr;
    stop = connecting_.get_token();
  }
  NIBBLE_ASSIGN_OR_RETURN(
      auto communicator,
      comm::DeviceCommunicator::Create(
          host_communicator_,
          {.caps = caps_,
           .transport = ToTransport(options_.transport),
           .max_values = row_capacity_ * config_.hidden_size,
           .stop = stop,
           .measure_policy = all_reduce_.mode == comm::AllReduceOptions::Mode::kAuto,
           .policy = device_policy_,
           .codec = all_reduce_.codec,
           .row_size = config_.hidden_size},
          pool));
  log::Info("rank {} of {}: sums of CUDA device {} travel by {}", place_.rank, place_.size,
            caps_.index, communicator->name());
  // One that is made for larger steps sums as this one does.
  device_policy_ =
      communicator->p2p() != nullptr ? communicator->p2p()->policy() : comm::AllReducePolicy{};
  const std::lock_guard lock(communicator_mutex_);
  if (stop.stop_requested()) {
    return absl::AbortedError("the group was given up while its devices were being connected");
  }
  communicator_ = std::move(communicator);
  communicator_rows_ = row_capacity_;
  return absl::OkStatus();
}

// A rank's logits are a block of columns; all blocks have the same stride and come one after the
// other. Where they are wanted they are put side by side.
absl::Status CudaDecoderModel::GatherLogits(int64_t num_rows) {
  const int64_t block = num_rows * logits_stride_;
  NIBBLE_RETURN_IF_ERROR(communicator_->AllGather(own_logits_.data(),
                                                  block * static_cast<int64_t>(sizeof(float)),
                                                  gathered_.data(), stream_.get()));
  if (!has_logits()) return absl::OkStatus();
  const int64_t stride = PaddedStride(config_.vocab_size, DType::kF32);
  for (int rank = 0; rank < place_.size; ++rank) {
    const Range columns = VocabularyOf(config_, {.rank = rank, .size = place_.size});
    NIBBLE_RETURN_IF_CUDA_ERROR(cudaMemcpy2DAsync(
        logits_.data() + columns.begin, static_cast<size_t>(stride) * sizeof(float),
        gathered_.data() + rank * block, static_cast<size_t>(logits_stride_) * sizeof(float),
        static_cast<size_t>(columns.size()) * sizeof(float), static_cast<size_t>(num_rows),
        cudaMemcpyDeviceToDevice, stream_.get()));
  }
  return absl::OkStatus();
}

absl::Status CudaDecoderModel::ReceiveRows(int64_t num_rows) {
  const int64_t num_values = num_rows * config_.hidden_size;
  // What the copy before this one reads: it is long over, unless a step of one stage only received.
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());
  NIBBLE_RETURN_IF_ERROR(stage_link_->Receive(stage_rows_.data(), num_values));
  return gpu::CopyToDevice(x_.data(), stage_rows_.data(),
                           static_cast<size_t>(num_values) * sizeof(float), stream_.get());
}

// The sum that the next layer's norm would begin with in one stage: the same bits. The norm itself
// is nobody's.
absl::Status CudaDecoderModel::SendRows(int64_t num_rows) {
  const int64_t num_values = num_rows * config_.hidden_size;
  NIBBLE_RETURN_IF_ERROR(Normalize(layers_.front().input_norm, num_rows, /*add_delta=*/true,
                                   activations_.For({.floats = DType::kF32}, config_.hidden_size)));
  NIBBLE_RETURN_IF_ERROR(gpu::CopyToHost(stage_rows_.data(), x_.data(),
                                         static_cast<size_t>(num_values) * sizeof(float),
                                         stream_.get()));
  NIBBLE_RETURN_IF_ERROR(FinishStep());
  return stage_link_->Send(stage_rows_.data(), num_values);
}

}  // namespace nibble::engine
