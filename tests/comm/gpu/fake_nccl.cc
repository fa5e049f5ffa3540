// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A library with NCCL's functions, for ranks that are threads of one process: messages wait in the
// host's memory, calls end in the background after some polls.

#include "tests/comm/gpu/fake_nccl.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "base/float16.h"

using nibble::comm::FakeNccl;
using nibble::comm::NcclComm;
using nibble::comm::NcclConfig;
using nibble::comm::NcclOp;
using nibble::comm::NcclResult;
using nibble::comm::NcclType;
using nibble::comm::NcclUniqueId;

namespace nibble::comm {
struct NcclComm {
  int rank;
  int size;
  std::atomic<int> polls_left{0};
};
}  // namespace nibble::comm

namespace {

struct Mail {
  std::mutex mutex;
  std::condition_variable came;
  std::map<std::pair<int, int>, std::deque<std::vector<char>>> boxes;  // by from, to
};
Mail& Messages() {
  static Mail mail;
  return mail;
}

struct Receipt {
  void* to;
  size_t bytes;
  int from;
  NcclComm* comm;
  cudaStream_t stream;
};
thread_local std::vector<Receipt> g_receipts;

NcclResult Begin(NcclComm* comm) {
  comm->polls_left = FakeNcclControl()->polls_in_progress;
  return NcclResult::kInProgress;
}

void Post(const void* data, size_t bytes, int to, NcclComm* comm, cudaStream_t stream) {
  std::vector<char> message(bytes);
  FakeNcclControl()->read(message.data(), data, bytes, stream);
  Mail& mail = Messages();
  const std::lock_guard lock(mail.mutex);
  mail.boxes[{comm->rank, to}].push_back(std::move(message));
  mail.came.notify_all();
}

// False when it never comes.
bool TakeMessage(int from, int to, std::vector<char>* message) {
  Mail& mail = Messages();
  std::unique_lock lock(mail.mutex);
  auto& box = mail.boxes[{from, to}];
  if (!mail.came.wait_for(lock, std::chrono::seconds(60), [&] { return !box.empty(); })) {
    return false;
  }
  *message = std::move(box.front());
  box.pop_front();
  return true;
}

// False when it never comes, or has another size.
bool Take(const Receipt& receipt) {
  std::vector<char> message;
  if (!TakeMessage(receipt.from, receipt.comm->rank, &message)) return false;
  if (message.size() != receipt.bytes) return false;
  FakeNcclControl()->write(receipt.to, message.data(), message.size(), receipt.stream);
  return true;
}

}  // namespace

extern "C" {

FakeNccl* FakeNcclControl() {
  static FakeNccl control;
  return &control;
}

NcclResult ncclGetVersion(int* version) {
  *version = FakeNcclControl()->version;
  return NcclResult::kSuccess;
}
NcclResult ncclGetUniqueId(NcclUniqueId* id) {
  *id = {"an id"};
  return NcclResult::kSuccess;
}
NcclResult ncclCommInitRankConfig(NcclComm** comm, int size, NcclUniqueId id, int rank,
                                  NcclConfig* config) {
  if (config->blocking != 0 || config->magic != 0xcafebeef || id.internal[3] != 'i') {
    return NcclResult{4};
  }
  *comm = new NcclComm{rank, size};
  return Begin(*comm);
}
NcclResult ncclCommGetAsyncError(NcclComm* comm, NcclResult* result) {
  FakeNccl* const control = FakeNcclControl();
  ++control->num_polls;
  if (comm->polls_left > 0) {
    *result = --comm->polls_left > 0 ? NcclResult::kInProgress : control->init_result;
  } else {
    *result = control->async;
  }
  return NcclResult::kSuccess;
}
NcclResult ncclCommFinalize(NcclComm* comm) { return Begin(comm); }
NcclResult ncclCommDestroy(NcclComm* comm) {
  ++FakeNcclControl()->num_destroyed;
  delete comm;
  return NcclResult::kSuccess;
}
NcclResult ncclCommAbort(NcclComm* comm) {
  ++FakeNcclControl()->num_aborted;
  delete comm;
  return NcclResult::kSuccess;
}
NcclResult ncclGroupStart() {
  g_receipts.clear();
  return NcclResult::kSuccess;
}
NcclResult ncclGroupEnd() {
  NcclResult result = NcclResult::kSuccess;
  for (const Receipt& receipt : g_receipts) {
    if (!Take(receipt)) return NcclResult::kRemoteError;
    result = Begin(receipt.comm);
  }
  return result;
}
NcclResult ncclSend(const void* data, size_t bytes, NcclType, int to, NcclComm* comm,
                    cudaStream_t stream) {
  Post(data, bytes, to, comm, stream);
  return NcclResult::kSuccess;
}
NcclResult ncclRecv(void* data, size_t bytes, NcclType, int from, NcclComm* comm,
                    cudaStream_t stream) {
  g_receipts.push_back({data, bytes, from, comm, stream});
  return NcclResult::kSuccess;
}
NcclResult ncclAllGather(const void* send, void* recv, size_t bytes, NcclType, NcclComm* comm,
                         cudaStream_t stream) {
  for (int r = 0; r < comm->size; ++r) {
    Post(send, bytes, r, comm, stream);
    g_receipts.push_back(
        {static_cast<char*>(recv) + static_cast<size_t>(r) * bytes, bytes, r, comm, stream});
  }
  return NcclResult::kSuccess;
}
// Of bf16 alone; it needs no group around it.
NcclResult ncclAllReduce(const void* send, void* recv, size_t count, NcclType type, NcclOp,
                         NcclComm* comm, cudaStream_t stream) {
  if (type != NcclType::kBf16) return NcclResult{4};
  const size_t bytes = count * sizeof(nibble::BFloat16);
  for (int r = 0; r < comm->size; ++r) Post(send, bytes, r, comm, stream);
  std::vector<float> sums(count);
  for (int r = 0; r < comm->size; ++r) {
    std::vector<char> message;
    if (!TakeMessage(r, comm->rank, &message) || message.size() != bytes) {
      return NcclResult::kRemoteError;
    }
    for (size_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, message.data() + i * sizeof(bits), sizeof(bits));
      sums[i] += ToFloat(nibble::BFloat16{bits});
    }
  }
  std::vector<nibble::BFloat16> rounded(count);
  for (size_t i = 0; i < count; ++i) rounded[i] = nibble::ToBFloat16(sums[i]);
  FakeNcclControl()->write(recv, rounded.data(), bytes, stream);
  return Begin(comm);
}
const char* ncclGetErrorString(NcclResult) { return "unhandled system error"; }
const char* ncclGetLastError(NcclComm*) { return "no route to the other host"; }

}  // extern "C"
