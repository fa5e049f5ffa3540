// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/copies.h"

#include <cstring>
#include <vector>

#include "tests/simt/simt.h"

namespace simt {
namespace {

constexpr int kCopyQueueSlot = 0;  // of a thread

struct GroupCopy {
  void* shared;
  const void* global;
  int bytes;
  bool fill_zero;
};
struct GroupQueue final : Kept {
  std::vector<GroupCopy> copies;    // of the groups under way and the one that is open
  std::vector<size_t> group_sizes;  // committed, oldest first; empty ones count
  size_t num_open = 0;              // copies not committed
  void Reset() override {
    copies.clear();
    group_sizes.clear();
    num_open = 0;
  }
};

GroupQueue& Queue() { return ThreadKept<GroupQueue>(kCopyQueueSlot); }

void Perform(const GroupCopy& copy) {
  if (copy.fill_zero) {
    std::memset(copy.shared, 0, static_cast<size_t>(copy.bytes));
  } else {
    std::memcpy(copy.shared, copy.global, static_cast<size_t>(copy.bytes));
  }
}

}  // namespace

void CopyAsync(void* shared, const void* global, int bytes, bool fill_zero) {
  CheckAligned(global, bytes, "CopyAsync from");
  CheckAligned(shared, bytes, "CopyAsync to");
  CheckShared(shared, bytes, "CopyAsync");
  const GroupCopy copy{shared, global, bytes, fill_zero};
  if (Mode().eager_copies) Perform(copy);
  GroupQueue& queue = Queue();
  queue.copies.push_back(copy);
  ++queue.num_open;
}

void CopyAsyncCommit() {
  GroupQueue& queue = Queue();
  queue.group_sizes.push_back(queue.num_open);
  queue.num_open = 0;
}

void CopyAsyncWait(int num_pending) {
  GroupQueue& queue = Queue();
  if (queue.num_open > 0) Fail("CopyAsyncWait with copies that were not committed");
  const size_t num_groups = queue.group_sizes.size();
  if (num_groups <= static_cast<size_t>(num_pending)) return;
  size_t num_copies = 0;
  for (size_t i = 0; i < num_groups - static_cast<size_t>(num_pending); ++i) {
    num_copies += queue.group_sizes[i];
  }
  if (!Mode().eager_copies) {
    for (size_t i = 0; i < num_copies; ++i) Perform(queue.copies[i]);
  }
  queue.copies.erase(queue.copies.begin(),
                     queue.copies.begin() + static_cast<ptrdiff_t>(num_copies));
  queue.group_sizes.erase(queue.group_sizes.begin(), queue.group_sizes.end() - num_pending);
}

}  // namespace simt
