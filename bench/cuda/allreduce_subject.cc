// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda/allreduce_subject.h"

#include <chrono>
#include <limits>
#include <utility>

#include "comm/gpu/nccl_session.h"
#include "comm/gpu/p2p_communicator.h"
#include "comm/gpu/p2p_plan.h"
#include "engine/model/cuda/all_reduce_norm.h"

namespace nibble::bench {
namespace {

using comm::Algorithm;
using comm::AllReduceChoice;
using comm::CodecDesc;
using comm::DeviceTransport;
using Mode = comm::AllReduceOptions::Mode;

constexpr std::chrono::seconds kTimeout{30};
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// nibble's collectives.
class DeviceSubject final : public AllReduceSubject {
 public:
  DeviceSubject(const comm::Communicator* host,
                std::unique_ptr<comm::DeviceCommunicator> communicator)
      : host_(host), communicator_(std::move(communicator)) {}

  std::string name() const override { return communicator_->name(); }
  bool is_asynchronous() const override { return communicator_->name() != "host"; }

  AllReduceChoice Choice(const AllReduceRows& rows) const override {
    const int64_t bytes = rows.sum.num_rows * rows.sum.row_size * 2;
    const comm::P2pCommunicator* const p2p = communicator_->p2p();
    AllReduceChoice choice = (p2p != nullptr ? p2p->policy() : host_->policy()).For(bytes);
    if (p2p == nullptr) choice.algorithm = Algorithm::kTwoShot;
    choice.codec = comm::DeviceCodec(choice.codec, /*exact=*/false, /*rows_are_bf16=*/true);
    return choice;
  }

  bool IsFused(const AllReduceRows& rows) const override {
    return engine::IsAllReduceNormFused(communicator_.get(), rows.sum);
  }

  absl::Status Enqueue(AllReduceOp op, const AllReduceRows& rows, cudaStream_t stream) override {
    if (op == AllReduceOp::kFusedNorm) {
      return engine::AllReduceNorm(communicator_.get(), rows.sum, rows.norm, stream);
    }
    NIBBLE_RETURN_IF_ERROR(communicator_->AllReduce(rows.sum, stream));
    if (op == AllReduceOp::kSum) return absl::OkStatus();
    return kernels::cuda::RmsNorm(rows.norm, stream);
  }

  absl::Status Watch(cudaStream_t) override { return absl::OkStatus(); }  // it watches itself
  absl::Status Check() override { return communicator_->Check(); }
  void Abort(const std::string& reason) override { communicator_->Abort(reason); }

 private:
  const comm::Communicator* const host_;
  const std::unique_ptr<comm::DeviceCommunicator> communicator_;
};

// ncclAllReduce of bf16, as other engines call it.
class NcclSubject final : public AllReduceSubject {
 public:
  explicit NcclSubject(std::unique_ptr<comm::NcclSession> session) : session_(std::move(session)) {}

  std::string name() const override { return "nccl " + session_->library().version_text(); }
  bool is_asynchronous() const override { return true; }
  AllReduceChoice Choice(const AllReduceRows&) const override {
    return {.max_bytes = kNoLimit, .codec = {.bits = 16}};
  }
  bool IsFused(const AllReduceRows&) const override { return false; }

  absl::Status Enqueue(AllReduceOp op, const AllReduceRows& rows, cudaStream_t stream) override {
    NIBBLE_RETURN_IF_ERROR(session_->Run([&](comm::NcclComm* communicator) {
      return session_->library().all_reduce(
          rows.sum.data, rows.sum.data, static_cast<size_t>(rows.sum.num_rows * rows.sum.row_size),
          comm::NcclType::kBf16, comm::NcclOp::kSum, communicator, stream);
    }));
    if (op == AllReduceOp::kSum) return absl::OkStatus();
    return kernels::cuda::RmsNorm(rows.norm, stream);
  }

  absl::Status Watch(cudaStream_t stream) override { return session_->Watch(stream); }
  absl::Status Check() override { return session_->Check(); }
  void Abort(const std::string& reason) override { session_->Abort(absl::AbortedError(reason)); }

 private:
  const std::unique_ptr<comm::NcclSession> session_;
};

DeviceTransport TransportOf(std::string_view name) {
  if (name == "p2p") return DeviceTransport::kP2p;
  if (name == "nccl") return DeviceTransport::kNccl;
  if (name == "host") return DeviceTransport::kHost;
  return DeviceTransport::kAuto;
}

absl::StatusOr<std::unique_ptr<AllReduceSubject>> MakeNccl(
    const AllReduceLinks& links, const absl::StatusOr<const comm::NcclLibrary*>& nccl) {
  // Without the library on all ranks, as they are one process.
  if (!nccl.ok()) return Unimplemented("{}", std::string(nccl.status().message()));
  auto session = comm::NcclSession::Create(
      *nccl, links.host, {.caps = links.caps, .max_values = links.max_values, .timeout = kTimeout});
  if (!session.ok()) return Unimplemented("{}", std::string(session.status().message()));
  return std::make_unique<NcclSubject>(*std::move(session));
}

}  // namespace

std::string_view ToString(AllReduceOp op) {
  switch (op) {
    case AllReduceOp::kSum:
      return "sum";
    case AllReduceOp::kSumThenNorm:
      return "sum, norm";
    case AllReduceOp::kFusedNorm:
      return "sum+norm";
  }
  return "unknown";
}

absl::StatusOr<std::vector<AllReduceSpec>> AllReduceSpecs(
    const CudaAllReduceBenchOptions& options) {
  const comm::AllReduceOptions bf16 = {.mode = Mode::kFixed, .codec = {.bits = 16}};
  std::vector<AllReduceSpec> specs = {
      {.kind = AllReduceSpec::Kind::kNccl, .name = "nccl", .mode = bf16}};
  const auto add = [&](const std::string& name, const comm::AllReduceOptions& mode) {
    for (const Algorithm algorithm : {Algorithm::kOneShot, Algorithm::kTwoShot}) {
      specs.push_back({.name = name, .mode = mode, .algorithm = algorithm});
    }
  };
  add("bf16", bf16);
  for (const std::string& name : options.codecs) {
    NIBBLE_ASSIGN_OR_RETURN(comm::AllReduceOptions mode, comm::ParseAllReduce(name));
    mode.codec.group_size = static_cast<int>(options.group_size);
    mode.codec.spikes = options.spikes;
    mode.codec.rotation = options.rotation;
    if (options.log2_scales) mode.codec.scale = comm::ScaleFormat::kLog2Int8;
    if (mode.mode == Mode::kAuto) {
      specs.push_back({.kind = AllReduceSpec::Kind::kMeasured, .name = name, .mode = mode});
    } else {
      add(name, mode);
    }
  }
  return specs;
}

absl::StatusOr<std::unique_ptr<AllReduceSubject>> MakeAllReduceSubject(
    const AllReduceSpec& spec, const AllReduceLinks& links,
    const absl::StatusOr<const comm::NcclLibrary*>& nccl) {
  if (spec.kind == AllReduceSpec::Kind::kNccl) return MakeNccl(links, nccl);
  comm::DeviceCommunicatorOptions options = {.caps = links.caps,
                                             .transport = TransportOf(links.transport),
                                             .max_values = links.max_values,
                                             .timeout = kTimeout,
                                             .codec = spec.mode.codec,
                                             .row_size = links.row_size};
  const bool is_measured = spec.kind == AllReduceSpec::Kind::kMeasured;
  if (is_measured) {
    options.measure_policy = true;
  } else {
    options.policy.choices = {{kNoLimit, spec.algorithm, spec.mode.codec}};
  }
  NIBBLE_ASSIGN_OR_RETURN(auto communicator,
                          comm::DeviceCommunicator::Create(links.host, options, links.pool));
  if (communicator->p2p() == nullptr && is_measured) {
    return Unimplemented("nothing is measured where bytes travel by {}", communicator->name());
  }
  if (communicator->p2p() == nullptr && spec.algorithm == Algorithm::kOneShot) {
    return Unimplemented("{} has no one-shot form", communicator->name());
  }
  return std::make_unique<DeviceSubject>(links.host, std::move(communicator));
}

}  // namespace nibble::bench
