// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/group.h"

#include <utility>

#include "comm/choose_policy.h"
#include "comm/group_communicator.h"
#include "comm/shm/segment.h"

namespace nibble::comm {

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeThreadGroup(
    int size, const AllReduceOptions& options) {
  if (size < 1 || size > shm::kMaxRanks) {
    return InvalidArgument("a group of {} ranks, the limit is 1 to {}", size, shm::kMaxRanks);
  }
  const CodecDesc codec =
      options.mode == AllReduceOptions::Mode::kFixed ? options.codec : CodecDesc{};
  NIBBLE_RETURN_IF_ERROR(Validate(codec));
  NIBBLE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  std::vector<std::unique_ptr<ShmSegment>> segments(static_cast<size_t>(size));
  if (size > 1) {
    NIBBLE_ASSIGN_OR_RETURN(segments, ShmSegment::MakeForThreads(size));
  }
  std::vector<std::unique_ptr<Communicator>> group;
  for (int rank = 0; rank < size; ++rank) {
    GroupLinks links = {.node_of_rank = std::vector<int>(static_cast<size_t>(size)),
                        .host = std::move(segments[static_cast<size_t>(rank)])};
    group.push_back(std::make_unique<GroupCommunicator>(
        rank, std::move(links), GroupSettings{HostPolicy(codec, size)}, isa));
  }
  return group;
}

}  // namespace nibble::comm
