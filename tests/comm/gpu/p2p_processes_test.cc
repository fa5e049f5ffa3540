// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Two ranks that are processes, each with its own view of one device: memory is mapped by CUDA IPC,
// written and read by kernels of both, and sums go through it. In the emulator, whose memory is of
// one process, the ranks are threads, and addresses are used as they are.

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "comm/gpu/device_communicator.h"
#include "comm/gpu/p2p_kernels.h"
#include "comm/gpu/p2p_memory.h"
#include "comm/group.h"
#include "tests/comm/gpu/device_ranks.h"
#include "tests/comm/shm/child_process.h"

namespace nibble::comm {
namespace {

constexpr int kRanks = 2;
constexpr int64_t kRows = 3;
constexpr int64_t kRowSize = 150;

// Each writes a word into the other's memory and one into its own, which the other reads.
absl::Status WriteAndRead(const gpu::DeviceCaps& caps, Communicator* host) {
  constexpr uint32_t kNonce = 12345;
  constexpr size_t kWords = 2 * kMaxP2pRanks;
  const int rank = host->rank();
  const int peer = 1 - rank;
  NIBBLE_ASSIGN_OR_RETURN(const P2pMemory memory,
                          P2pMemory::Create(host, caps, P2pMemoryBytes(1024, 2)));
  P2pLink link = {.rank = rank, .size = kRanks, .region_bytes = 1024};
  std::copy(memory.of_rank().begin(), memory.of_rank().end(), link.memory);
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
  NIBBLE_ASSIGN_OR_RETURN(const auto words, gpu::DeviceBuffer<uint32_t>::Create(kWords));
  NIBBLE_RETURN_IF_ERROR(LaunchP2pProbeWrite(link, kNonce, stream.get()));
  NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
  NIBBLE_RETURN_IF_ERROR(host->Barrier());
  std::vector<uint32_t> found(kWords);
  NIBBLE_RETURN_IF_ERROR(LaunchP2pProbeRead(link, words.data(), stream.get()));
  NIBBLE_RETURN_IF_ERROR(
      gpu::CopyToHost(found.data(), words.data(), words.size_bytes(), stream.get()));
  NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
  NIBBLE_RETURN_IF_ERROR(host->Barrier());
  const auto from = static_cast<size_t>(peer);
  if (found[from] != ProbeToken(kNonce, peer, rank)) {
    return Internal("what the peer wrote here is {}", found[from]);
  }
  if (found[kMaxP2pRanks + from] != ProbeToken(kNonce, peer, peer)) {
    return Internal("what the peer has written at home reads {}", found[kMaxP2pRanks + from]);
  }
  return absl::OkStatus();
}

// By the kernels that a step's sums go through. The driver lets the two processes take turns where
// their kernels do not run together: slow, never wrong.
absl::Status Sum(const gpu::DeviceCaps& caps, Communicator* host) {
  DeviceCommunicatorOptions options = {
      .caps = caps, .transport = DeviceTransport::kP2p, .max_values = kRows * kRowSize};
  options.caps.num_sms = 2;
  ThreadPool pool(1);
  NIBBLE_ASSIGN_OR_RETURN(const auto device, DeviceCommunicator::Create(host, options, &pool));
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
  std::vector<float> values(kRows * kRowSize);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i % 11) + static_cast<float>(host->rank());
  }
  NIBBLE_ASSIGN_OR_RETURN(const auto data, gpu::Upload(values, stream.get()));
  NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
  NIBBLE_RETURN_IF_ERROR(host->Barrier());
  NIBBLE_RETURN_IF_ERROR(device->AllReduce(
      {.data = data.data(), .dtype = DType::kF32, .num_rows = kRows, .row_size = kRowSize},
      stream.get()));
  std::vector<float> sums(values.size());
  NIBBLE_RETURN_IF_ERROR(
      gpu::CopyToHost(sums.data(), data.data(), data.size_bytes(), stream.get()));
  NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
  NIBBLE_RETURN_IF_ERROR(device->Check());
  NIBBLE_RETURN_IF_ERROR(host->Barrier());  // freeing waits for the device
  for (size_t i = 0; i < sums.size(); ++i) {
    const float expected = static_cast<float>(2 * (i % 11)) + 1.0F;
    if (sums[i] != expected) return Internal("sum {} is {}, not {}", i, sums[i], expected);
  }
  return absl::OkStatus();
}

// "OK", "no CUDA device", or what went wrong.
using Body = absl::Status(const gpu::DeviceCaps& caps, Communicator* host);
std::string RunRank(Body* body, Communicator* host) {
  const auto devices = gpu::ListDevices();
  if (!devices.ok()) return devices.status().ToString();
  if (devices->empty()) return "no CUDA device";
  return body(devices->front(), host).ToString();
}

// Nothing here touches the device before the processes are there: a driver does not survive a fork.
class P2pProcesses : public ::testing::Test {
 protected:
  void TearDown() override { RemoveLeftovers(group_id_, 1); }

#if defined(NIBBLE_SIMT)
  std::vector<std::string> Results(Body* body) const {
    std::vector<std::string> results(kRanks);
    const auto group = ThreadGroup(kRanks, {.mode = AllReduceOptions::Mode::kNone});
    OnRanks(group, [&](int rank, Communicator* host, ThreadPool*) {
      results[static_cast<size_t>(rank)] = RunRank(body, host);
    });
    return results;
  }
#else
  std::vector<std::string> Results(Body* body) const {
    std::vector<std::unique_ptr<GroupMember> > members;
    std::vector<std::string> addresses;
    for (int rank = 0; rank < kRanks; ++rank) {
      auto member = GroupMember::Prepare(
          {.rank = rank, .node_of_rank = {0, 0}, .group_id = group_id_, .generation = 1});
      if (!member.ok()) return {member.status().ToString()};
      addresses.push_back((*member)->address());
      members.push_back(*std::move(member));
    }
    std::vector<std::unique_ptr<ChildProcess> > children;
    for (size_t rank = 0; rank < kRanks; ++rank) {
      children.push_back(std::make_unique<ChildProcess>([&, rank]() -> std::string {
        ThreadPool pool(1);
        const auto host = members[rank]->Connect(
            addresses, {.all_reduce = {.mode = AllReduceOptions::Mode::kNone}}, &pool);
        return host.ok() ? RunRank(body, host->get()) : host.status().ToString();
      }));
    }
    std::vector<std::string> results;
    for (const auto& child : children) results.push_back(child->Result());
    return results;
  }
#endif

  void Check(Body* body) const {
    const std::vector<std::string> results = Results(body);
    if (results[0] == "no CUDA device") GTEST_SKIP() << results[0];
    EXPECT_EQ(results, (std::vector<std::string>{"OK", "OK"}));
  }

  const std::string group_id_ = "p2p-processes-" + std::to_string(getpid());
};

TEST_F(P2pProcesses, MapEachOthersMemory) { Check(WriteAndRead); }
TEST_F(P2pProcesses, SumThroughIt) { Check(Sum); }

}  // namespace
}  // namespace nibble::comm
