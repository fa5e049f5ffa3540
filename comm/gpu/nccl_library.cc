// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/nccl_library.h"

#include "base/dynamic_library.h"

namespace nibble::comm {
namespace {

constexpr const char* kFile = "libnccl.so.2";

}  // namespace

std::string NcclLibrary::version_text() const {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

absl::StatusOr<NcclLibrary> NcclLibrary::Open(const char* file) {
  NIBBLE_ASSIGN_OR_RETURN(const DynamicLibrary library, DynamicLibrary::Open(file));
  NcclLibrary nccl;
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclGetVersion", &nccl.get_version));
  if (nccl.get_version(&nccl.version) != NcclResult::kSuccess || nccl.version < kOldest) {
    return Unavailable("{} is NCCL {}, wanted is 2.18 or later", file, nccl.version_text());
  }
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclGetUniqueId", &nccl.get_unique_id));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclCommInitRankConfig", &nccl.comm_init_rank_config));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclCommGetAsyncError", &nccl.comm_get_async_error));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclCommFinalize", &nccl.comm_finalize));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclCommDestroy", &nccl.comm_destroy));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclCommAbort", &nccl.comm_abort));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclGroupStart", &nccl.group_start));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclGroupEnd", &nccl.group_end));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclSend", &nccl.send));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclRecv", &nccl.recv));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclAllGather", &nccl.all_gather));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclAllReduce", &nccl.all_reduce));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclGetErrorString", &nccl.get_error_string));
  NIBBLE_RETURN_IF_ERROR(library.Find("ncclGetLastError", &nccl.get_last_error));
  return nccl;
}

absl::StatusOr<const NcclLibrary*> NcclLibrary::Get() {
  static const auto* const opened = new absl::StatusOr<NcclLibrary>(Open(kFile));
  if (!opened->ok()) return opened->status();
  return &**opened;
}

}  // namespace nibble::comm
