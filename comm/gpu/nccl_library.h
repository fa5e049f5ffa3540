// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// NCCL, opened at run time: a host without it, or without a second device, needs none. What is
// declared here is NCCL's binary interface of 2.18, which later ones keep.
//
//   NIBBLE_ASSIGN_OR_RETURN(const NcclLibrary* const nccl, NcclLibrary::Get());
//   nccl->group_start();
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstddef>
#include <string>

#include "base/status.h"

namespace nibble::comm {

enum class NcclResult : int { kSuccess = 0, kRemoteError = 6, kInProgress = 7 };
enum class NcclType : int { kInt8 = 0, kBf16 = 9 };
enum class NcclOp : int { kSum = 0 };

struct NcclUniqueId {
  char internal[128];
};

// All that 2.18 knows; what later versions added they take as not set, by `size` and `version`.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = 0;  // calls return at once, errors are asked for
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

struct NcclComm;  // theirs

// NCCL's functions, without their prefix.
struct NcclLibrary {
  static constexpr int kOldest = 21800;  // as NCCL counts: 2.18.0

  // Opens it once; stays open as long as the process. UNAVAILABLE where there is none, or one that
  // is too old, which is named. Thread-safe.
  static absl::StatusOr<const NcclLibrary*> Get();
  // Get() of another file than libnccl.so.2.
  static absl::StatusOr<NcclLibrary> Open(const char* file);

  int version = 0;
  std::string version_text() const;  // "2.28.9"

  NcclResult (*get_version)(int*) = nullptr;
  NcclResult (*get_unique_id)(NcclUniqueId*) = nullptr;
  NcclResult (*comm_init_rank_config)(NcclComm**, int, NcclUniqueId, int, NcclConfig*) = nullptr;
  NcclResult (*comm_get_async_error)(NcclComm*, NcclResult*) = nullptr;
  NcclResult (*comm_finalize)(NcclComm*) = nullptr;
  NcclResult (*comm_destroy)(NcclComm*) = nullptr;
  NcclResult (*comm_abort)(NcclComm*) = nullptr;
  NcclResult (*group_start)() = nullptr;
  NcclResult (*group_end)() = nullptr;
  NcclResult (*send)(const void*, size_t, NcclType, int, NcclComm*, cudaStream_t) = nullptr;
  NcclResult (*recv)(void*, size_t, NcclType, int, NcclComm*, cudaStream_t) = nullptr;
  NcclResult (*all_gather)(const void*, void*, size_t, NcclType, NcclComm*, cudaStream_t) = nullptr;
  // What benchmarks compare with: its sums have bits of their own.
  NcclResult (*all_reduce)(const void*, void*, size_t, NcclType, NcclOp, NcclComm*,
                           cudaStream_t) = nullptr;
  const char* (*get_error_string)(NcclResult) = nullptr;
  const char* (*get_last_error)(NcclComm*) = nullptr;
};

}  // namespace nibble::comm
