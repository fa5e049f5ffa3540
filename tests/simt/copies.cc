// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/copies.h"

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "tests/simt/simt.h"

namespace simt {
namespace {

constexpr int kCopyQueueSlot = 0;  // of a thread

struct GroupCopy {
  void* shared;
  const void* global;
  bool fill_zero;
};
struct GroupQueue {
  std::deque<std::vector<GroupCopy>> groups;  // committed, oldest first; empty ones count
  std::vector<GroupCopy> open;                // not committed
};

GroupQueue& Queue() {
  std::shared_ptr<void>& slot = ThreadSlot(kCopyQueueSlot);
  if (slot == nullptr) slot = std::make_shared<GroupQueue>();
  return *static_cast<GroupQueue*>(slot.get());
}

void Perform(const GroupCopy& copy) {
  if (copy.fill_zero) {
    std::memset(copy.shared, 0, 16);
  } else {
    std::memcpy(copy.shared, copy.global, 16);
  }
}

}  // namespace

void CopyAsync16(void* shared, const void* global, bool fill_zero) {
  CheckAligned(global, 16, "CopyAsync16 from");
  CheckAligned(shared, 16, "CopyAsync16 to");
  CheckShared(shared, 16, "CopyAsync16");
  const GroupCopy copy{shared, global, fill_zero};
  if (Mode().eager_copies) Perform(copy);
  Queue().open.push_back(copy);
}

void CopyAsyncCommit() {
  GroupQueue& queue = Queue();
  queue.groups.push_back(std::move(queue.open));
  queue.open.clear();
}

void CopyAsyncWait(int num_pending) {
  GroupQueue& queue = Queue();
  if (!queue.open.empty()) Fail("CopyAsyncWait with copies that were not committed");
  while (queue.groups.size() > static_cast<size_t>(num_pending)) {
    if (!Mode().eager_copies) {
      for (const GroupCopy& copy : queue.groups.front()) Perform(copy);
    }
    queue.groups.pop_front();
  }
}

}  // namespace simt
