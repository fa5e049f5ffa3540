// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/barriers.h"

#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/cuda/tensor_map.h"
#include "tests/simt/simt.h"

namespace simt {
namespace {

constexpr int kCopiesSlot = 0;  // of a block
constexpr uint32_t kMaxCount = 1023;
constexpr uint32_t kMaxBytes = (1U << 20) - 1;
constexpr uint64_t kMagic = 0x5B42;
constexpr uint64_t kMapMagic = 0x7e4502d5;

// What the 64 bits hold; the hardware's arrangement is its own.
struct State {
  uint64_t parity : 1;    // of the phase under way
  uint64_t missing : 11;  // arrivals
  uint64_t count : 11;    // arrivals of each phase
  int64_t bytes : 25;     // expected and not copied; negative: copied before they were expected
  uint64_t magic : 16;
};

struct Map {
  uint64_t magic;
  nibble::gpu::Tensor2d tensor;
};
static_assert(sizeof(Map) <= sizeof(nibble::gpu::TensorMap));

struct Copy {
  uint64_t* barrier;
  uint32_t bytes;
  uint8_t* to;
  const uint8_t* from;           // plain
  nibble::gpu::Tensor2d tensor;  // from == nullptr
  int x;
  int y;
};

struct Copies final : Kept {
  std::vector<Copy> waiting;
  void Reset() override {
    if (!waiting.empty()) Fail("a block ended with bulk copies that nobody waited for");
  }
};

Copies& BlockCopies() { return BlockKept<Copies>(kCopiesSlot); }

State Load(const uint64_t* barrier, const char* what) {
  CheckAligned(barrier, 8, what);
  CheckShared(barrier, 8, what);
  const auto state = std::bit_cast<State>(*barrier);
  if (state.magic != kMagic) Fail(std::string(what) + ": not a barrier, or overwritten");
  return state;
}

void Store(uint64_t* barrier, State state) {
  if (state.missing == 0 && state.bytes < 0) {
    Fail("more bytes were copied for a barrier than were expected");
  }
  if (state.missing == 0 && state.bytes == 0) {
    state.parity ^= 1;
    state.missing = state.count;
    Progress();
  }
  *barrier = std::bit_cast<uint64_t>(state);
}

void PerformTensor(const Copy& copy) {
  const auto& tensor = copy.tensor;
  const int64_t row_bytes = int64_t{tensor.box_inner} * tensor.element_bytes;
  const auto base = reinterpret_cast<uintptr_t>(SharedMemory());
  for (int64_t row = 0; row < tensor.box_outer; ++row) {
    const int64_t y = copy.y + row;
    for (int64_t chunk = 0; chunk < row_bytes; chunk += 16) {
      uintptr_t offset = reinterpret_cast<uintptr_t>(copy.to) +
                         static_cast<uintptr_t>(row * row_bytes + chunk) - base;
      if (tensor.swizzle_128) offset ^= (offset >> 7 & 7) << 4;
      uint8_t bytes[16] = {};
      for (int64_t i = 0; i < 16; i += tensor.element_bytes) {
        const int64_t x = copy.x + (chunk + i) / tensor.element_bytes;
        if (x < 0 || x >= tensor.inner || y < 0 || y >= tensor.outer) continue;
        std::memcpy(bytes + i,
                    static_cast<const uint8_t*>(tensor.global) + y * tensor.row_stride_bytes +
                        x * tensor.element_bytes,
                    static_cast<size_t>(tensor.element_bytes));
      }
      std::memcpy(SharedMemory() + offset, bytes, 16);
    }
  }
}

void Perform(const Copy& copy) {
  if (copy.from != nullptr) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  } else {
    PerformTensor(copy);
  }
  State state = Load(copy.barrier, "a bulk copy's barrier");
  state.bytes -= copy.bytes;
  Store(copy.barrier, state);
}

void Begin(const Copy& copy) {
  Load(copy.barrier, "a bulk copy's barrier");
  if (Mode().eager_copies) {
    Perform(copy);
  } else {
    BlockCopies().waiting.push_back(copy);
  }
}

// Those of `barrier`, youngest first.
void PerformWaiting(uint64_t* barrier) {
  std::vector<Copy>& waiting = BlockCopies().waiting;
  std::vector<Copy> now;
  for (size_t i = waiting.size(); i-- > 0;) {
    if (waiting[i].barrier != barrier) continue;
    now.push_back(waiting[i]);
    waiting.erase(waiting.begin() + static_cast<ptrdiff_t>(i));
  }
  for (const Copy& copy : now) Perform(copy);
}

}  // namespace

void BarrierInit(uint64_t* barrier, uint32_t count) {
  CheckAligned(barrier, 8, "BarrierInit");
  CheckShared(barrier, 8, "BarrierInit");
  if (count < 1 || count > kMaxCount) Fail("BarrierInit: count " + std::to_string(count));
  *barrier = std::bit_cast<uint64_t>(
      State{.parity = 0, .missing = count, .count = count, .bytes = 0, .magic = kMagic});
}

void BarrierArrive(uint64_t* barrier, uint32_t expected_bytes) {
  State state = Load(barrier, "BarrierArrive");
  if (expected_bytes > kMaxBytes) {
    Fail("BarrierArriveExpectBytes: " + std::to_string(expected_bytes) + " bytes, the limit is " +
         std::to_string(kMaxBytes));
  }
  if (state.missing == 0) Fail("more threads arrive at a barrier than it counts");
  --state.missing;
  state.bytes += expected_bytes;
  Store(barrier, state);
}

void BarrierWait(uint64_t* barrier, uint32_t parity) {
  if (parity > 1) Fail("BarrierWait: parity " + std::to_string(parity));
  while (true) {
    State state = Load(barrier, "BarrierWait");
    if (state.parity != parity) return;
    if (state.missing == 0 && !Mode().eager_copies) {
      PerformWaiting(barrier);
      state = Load(barrier, "BarrierWait");
      if (state.parity != parity) return;
    }
    YieldFor(state.missing > 0 ? "BarrierWait (arrivals are missing)"
                               : "BarrierWait (bytes are missing)");
  }
}

void BulkCopy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  CheckAligned(shared, 16, "BulkCopy to");
  CheckAligned(global, 16, "BulkCopy from");
  CheckShared(shared, bytes, "BulkCopy");
  if (bytes == 0 || bytes % 16 != 0) {
    Fail("BulkCopy of " + std::to_string(bytes) + " bytes, not a multiple of 16");
  }
  Begin({.barrier = barrier,
         .bytes = bytes,
         .to = static_cast<uint8_t*>(shared),
         .from = static_cast<const uint8_t*>(global),
         .tensor = {},
         .x = 0,
         .y = 0});
}

void TensorCopy2d(void* shared, const void* map, int x, int y, uint64_t* barrier) {
  CheckAligned(map, 64, "TensorCopy2d: the map");
  Map made{};
  std::memcpy(&made, map, sizeof(made));
  if (made.magic != kMapMagic) Fail("TensorCopy2d: not a tensor map");
  const auto bytes = static_cast<uint32_t>(made.tensor.box_inner * made.tensor.box_outer *
                                           made.tensor.element_bytes);
  CheckAligned(shared, 128, "TensorCopy2d to");
  CheckShared(shared, bytes, "TensorCopy2d");
  Begin({.barrier = barrier,
         .bytes = bytes,
         .to = static_cast<uint8_t*>(shared),
         .from = nullptr,
         .tensor = made.tensor,
         .x = x,
         .y = y});
}

}  // namespace simt

namespace nibble::gpu {

absl::Status EncodeTensorMap2d(const Tensor2d& tensor, TensorMap* map) {
  const simt::Map made{simt::kMapMagic, tensor};
  std::memcpy(map, &made, sizeof(made));
  return absl::OkStatus();
}

}  // namespace nibble::gpu
