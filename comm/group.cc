// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/group.h"

#include <limits>
#include <utility>

#include "comm/group_communicator.h"
#include "comm/memory_transport.h"

namespace nibble::comm {
namespace {

constexpr int kMaxThreadRanks = 64;
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
// Messages of ranks that share memory: one step below, two above.
constexpr int64_t kOneShotBytes = 16 << 10;

// Without measuring.
AllReducePolicy FixedPolicy(const CodecDesc& codec) {
  return {{{kOneShotBytes, Algorithm::kOneShot, codec}, {kNoLimit, Algorithm::kTwoShot, codec}}};
}

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeThreadGroup(
    int size, const AllReduceOptions& options) {
  if (size < 1 || size > kMaxThreadRanks) {
    return InvalidArgument("a group of {} ranks, the limit is 1 to {}", size, kMaxThreadRanks);
  }
  const CodecDesc codec =
      options.mode == AllReduceOptions::Mode::kFixed ? options.codec : CodecDesc{};
  NIBBLE_RETURN_IF_ERROR(Validate(codec));
  NIBBLE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  std::vector<std::unique_ptr<Communicator>> group;
  for (std::unique_ptr<Transport>& transport : MakeMemoryTransports(size)) {
    group.push_back(std::make_unique<GroupCommunicator>(GroupLinks{std::move(transport)},
                                                        GroupSettings{FixedPolicy(codec)}, isa));
  }
  return group;
}

}  // namespace nibble::comm
