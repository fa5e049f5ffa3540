// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <memory>

#include "base/cuda/buffer.h"
#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "base/cuda/stream.h"
#include "base/float16.h"
#include "comm/gpu/p2p_job.cuh"
#include "tests/comm/gpu/one_device.h"

namespace nibble::comm {
namespace {

constexpr int kMaxThreads = 256;

// Pauses of a rank before some steps, by chance.
struct RandomStall {
  __device__ void operator()(int step) const {
    if (seed == 0) return;
    uint32_t random = seed + static_cast<uint32_t>(operation * 64 + step * 8) +
                      static_cast<uint32_t>(rank) * 0x9e3779b9U;
    random = (random ^ random >> 16) * 0x7feb352dU;
    random = (random ^ random >> 15) * 0x846ca68bU;
    if (random % 3 != 0) return;
    for (uint32_t look = 0; look < (random >> 8) % 300; ++look) {
      (void)gpu::LoadAcquireDevice(word);
    }
  }

  uint32_t seed;
  int rank;
  int operation;
  const uint32_t* word;
};

struct Run {
  const P2pLink* links;  // [num_ranks]
  const P2pJob* jobs;    // [num_jobs][num_ranks]
  uint32_t* arrivals;    // [num_ranks], 0: blocks of the rank that are through, counted on
  int num_jobs;
  uint32_t stall_seed;
  int silent_rank;
};

// All blocks of a rank have ended an operation, as at the end of a launch.
__device__ void EndOfLaunch(uint32_t* arrivals, uint32_t expected) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrivals, 1U);
    while (gpu::LoadAcquireDevice(arrivals) < expected) {
    }
  }
  __syncthreads();
}

template <int kBits, bool kTwoShot>
__global__ void __launch_bounds__(kMaxThreads) OneDeviceKernel(Run run) {
  const int rank = static_cast<int>(blockIdx.y);
  if (rank == run.silent_rank) return;
  const P2pLink link = run.links[rank];
  NoEpilogue::Shared none;
  for (int i = 0; i < run.num_jobs; ++i) {
    const P2pJob job = run.jobs[i * link.size + rank];
    RunP2pAllReduce<kBits, kTwoShot>(link, job, NoEpilogue(),
                                     RandomStall{run.stall_seed, rank, i, &link.progress->broken},
                                     gpu::SharedAs<P2pShared>(), &none);
    EndOfLaunch(&run.arrivals[rank], static_cast<uint32_t>(i + 1) * gridDim.x);
  }
}

template <typename T>
absl::StatusOr<gpu::DeviceBuffer<T>> OnDevice(const std::vector<T>& values, cudaStream_t stream) {
  NIBBLE_ASSIGN_OR_RETURN(auto buffer, gpu::DeviceBuffer<T>::Create(values.size()));
  NIBBLE_RETURN_IF_ERROR(
      gpu::CopyToDevice(buffer.data(), values.data(), buffer.size_bytes(), stream));
  return buffer;
}

// A rank's memory, and the words beside it.
struct RankMemory {
  gpu::DeviceBuffer<uint8_t> shared;
  gpu::DeviceBuffer<P2pProgress> progress;
  gpu::PinnedBuffer<P2pHostWords> words;
};

absl::StatusOr<std::vector<RankMemory>> MakeMemory(const OneDeviceOptions& options,
                                                   cudaStream_t stream) {
  auto flags = std::make_unique<P2pFlags>();
  std::fill_n(&flags->pieces[0][0], kMaxP2pBlocks * kMaxP2pRanks,
              options.first_epoch - options.flags_behind);
  std::fill_n(&flags->sums[0][0], kMaxP2pBlocks * kMaxP2pRanks,
              options.first_epoch - options.flags_behind);
  std::vector<RankMemory> ranks(static_cast<size_t>(options.num_ranks));
  for (size_t r = 0; r < ranks.size(); ++r) {
    const auto bytes =
        static_cast<size_t>(P2pMemoryBytes(options.region_bytes, options.num_buffers));
    NIBBLE_ASSIGN_OR_RETURN(ranks[r].shared, gpu::DeviceBuffer<uint8_t>::Create(bytes));
    NIBBLE_RETURN_IF_ERROR(
        gpu::CopyToDevice(ranks[r].shared.data(), flags.get(), sizeof(P2pFlags), stream));
    NIBBLE_ASSIGN_OR_RETURN(
        ranks[r].progress,
        OnDevice(std::vector<P2pProgress>{{.epoch = options.first_epoch}}, stream));
    NIBBLE_ASSIGN_OR_RETURN(ranks[r].words, gpu::PinnedBuffer<P2pHostWords>::Create(1));
    *ranks[r].words.data() = {.aborted = static_cast<int>(r) == options.aborted_rank ? 1U : 0U};
  }
  return ranks;
}

std::vector<P2pLink> LinksOf(const OneDeviceOptions& options,
                             const std::vector<RankMemory>& ranks) {
  std::vector<P2pLink> links;
  for (size_t r = 0; r < ranks.size(); ++r) {
    P2pLink link = {.rank = static_cast<int>(r),
                    .size = options.num_ranks,
                    .region_bytes = options.region_bytes,
                    .num_buffers = options.num_buffers,
                    .timeout_clocks = options.timeout_clocks,
                    .progress = ranks[r].progress.data(),
                    .host = ranks[r].words.data()};
    for (size_t peer = 0; peer < ranks.size(); ++peer)
      link.memory[peer] = ranks[peer].shared.data();
    links.push_back(link);
  }
  return links;
}

// A message's rows of all ranks on the device, as bytes of its type.
class MessageRows {
 public:
  static absl::StatusOr<MessageRows> Create(const OneDeviceMessage& message, cudaStream_t stream) {
    MessageRows rows;
    for (const std::vector<float>& values : message.values) {
      std::vector<uint8_t> bytes(values.size() * SizeOf(message.dtype));
      for (size_t i = 0; i < values.size(); ++i) {
        if (message.dtype == DType::kF32) {
          reinterpret_cast<float*>(bytes.data())[i] = values[i];
        } else {
          reinterpret_cast<uint16_t*>(bytes.data())[i] = ToBFloat16(values[i]).bits;
        }
      }
      NIBBLE_ASSIGN_OR_RETURN(auto buffer, OnDevice(bytes, stream));
      rows.buffers_.push_back(std::move(buffer));
    }
    return rows;
  }

  void* of_rank(size_t rank) const { return buffers_[rank].data(); }

  absl::Status Read(cudaStream_t stream, OneDeviceMessage* message) const {
    for (size_t r = 0; r < buffers_.size(); ++r) {
      std::vector<uint8_t> bytes(buffers_[r].size());
      NIBBLE_RETURN_IF_ERROR(
          gpu::CopyToHost(bytes.data(), buffers_[r].data(), bytes.size(), stream));
      NIBBLE_RETURN_IF_ERROR(gpu::ToStatus(cudaStreamSynchronize(stream), "cudaStreamSynchronize"));
      std::vector<float>& values = message->values[r];
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = message->dtype == DType::kF32
                        ? reinterpret_cast<const float*>(bytes.data())[i]
                        : ToFloat(BFloat16{reinterpret_cast<const uint16_t*>(bytes.data())[i]});
      }
    }
    return absl::OkStatus();
  }

 private:
  std::vector<gpu::DeviceBuffer<uint8_t>> buffers_;
};

// Jobs of a message for all ranks, part by part.
absl::Status AddJobs(const OneDeviceOptions& options, const OneDeviceMessage& message,
                     const MessageRows& rows, std::vector<P2pJob>* jobs) {
  const bool has_groups = message.codec.is_integer();
  const P2pMessage shape = {
      .codec = message.codec,
      .groups = {.row_size = has_groups ? message.row_size : message.num_rows * message.row_size,
                 .group_size = message.codec.group_size},
      .num_rows = has_groups ? message.num_rows : 1,
      .algorithm = message.algorithm};
  NIBBLE_ASSIGN_OR_RETURN(const P2pPlan plan,
                          PlanMessage(shape, {.num_ranks = options.num_ranks,
                                              .max_blocks = options.max_blocks,
                                              .region_bytes = options.region_bytes}));
  if (plan.two_shot != (message.algorithm == Algorithm::kTwoShot)) {
    return InvalidArgument("the region of {} bytes is too small for one-shot",
                           options.region_bytes);
  }
  for (int64_t part = 0; part < plan.num_parts(); ++part) {
    for (size_t r = 0; r < static_cast<size_t>(options.num_ranks); ++r) {
      NIBBLE_ASSIGN_OR_RETURN(
          const cuda::Rows view,
          cuda::RowsOf(message.codec,
                       {.data = rows.of_rank(r), .dtype = message.dtype, .groups = shape.groups}));
      jobs->push_back(MakeP2pJob(plan, message.codec, view, part));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunOnOneDevice(const OneDeviceOptions& options,
                            std::vector<OneDeviceMessage>* messages,
                            std::vector<uint32_t>* faults) {
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<RankMemory> ranks, MakeMemory(options, stream.get()));
  std::vector<MessageRows> rows;
  std::vector<P2pJob> jobs;
  for (const OneDeviceMessage& message : *messages) {
    NIBBLE_ASSIGN_OR_RETURN(MessageRows of_message, MessageRows::Create(message, stream.get()));
    NIBBLE_RETURN_IF_ERROR(AddJobs(options, message, of_message, &jobs));
    rows.push_back(std::move(of_message));
  }
  NIBBLE_ASSIGN_OR_RETURN(const auto links, OnDevice(LinksOf(options, ranks), stream.get()));
  NIBBLE_ASSIGN_OR_RETURN(const auto device_jobs, OnDevice(jobs, stream.get()));
  NIBBLE_ASSIGN_OR_RETURN(
      const auto arrivals,
      OnDevice(std::vector<uint32_t>(static_cast<size_t>(options.num_ranks)), stream.get()));
  const Run run = {.links = links.data(),
                   .jobs = device_jobs.data(),
                   .arrivals = arrivals.data(),
                   .num_jobs = static_cast<int>(jobs.size()) / options.num_ranks,
                   .stall_seed = options.stall_seed,
                   .silent_rank = options.silent_rank};
  const OneDeviceMessage& first = messages->front();
  NIBBLE_RETURN_IF_ERROR(cuda::DispatchBits(first.codec.bits, [&](auto bits) {
    const auto kernel = first.algorithm == Algorithm::kTwoShot ? OneDeviceKernel<bits(), true>
                                                               : OneDeviceKernel<bits(), false>;
    return gpu::Launch(kernel,
                       {.grid = {static_cast<unsigned>(options.max_blocks),
                                 static_cast<unsigned>(options.num_ranks)},
                        .block = {static_cast<unsigned>(options.num_threads)},
                        .shared_bytes = sizeof(P2pShared),
                        .stream = stream.get(),
                        .cooperative = true},
                       run);
  }));
  for (size_t i = 0; i < rows.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(rows[i].Read(stream.get(), &(*messages)[i]));
  }
  if (faults == nullptr) return absl::OkStatus();
  faults->clear();
  for (const RankMemory& rank : ranks) faults->push_back(rank.words.data()->fault);
  return absl::OkStatus();
}

}  // namespace nibble::comm
