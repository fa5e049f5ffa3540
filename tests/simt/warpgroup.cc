// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/warpgroup.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/float16.h"
#include "tests/simt/simt.h"

namespace simt {
namespace {

constexpr int kQueueSlot = 1;             // of a thread
constexpr uint32_t kPoison = 0x5BADBEEF;  // as a float, too, nothing that a sum would be
constexpr uint64_t kDescriptorFields =
    uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16;
constexpr uint64_t kAddressMask = 0x3FFF;

// Registers of D: 32 bits each of what the instruction adds, so read and written as bytes.
using Registers = unsigned char*;
constexpr size_t kRegisterBytes = 4;

struct Instruction {
  int n;
  bool is_bf16;
  Registers d;
  const uint32_t* a;
  uint64_t descriptor;
  bool accumulate;
};
// What the registers of a D really hold while instructions are under way.
struct Accumulator {
  Registers d;
  std::vector<unsigned char> values;
  int num_under_way;
};
struct Queue final : Kept {
  std::deque<std::vector<Instruction>> groups;
  std::vector<Instruction> open;
  std::vector<Accumulator> accumulators;
  bool fenced = false;
  void Reset() override {
    if (!open.empty() || !groups.empty()) {
      Fail("a thread ended with wgmma that it did not wait for");
    }
    fenced = false;
  }
};

Queue& OfThread() { return ThreadKept<Queue>(kQueueSlot); }

// B [n, 32] from its swizzled atoms.
void GatherB(const Instruction& instruction, int8_t (*b)[32]) {
  const size_t start = (instruction.descriptor & kAddressMask) << 4;
  for (int row = 0; row < instruction.n; ++row) {
    for (size_t chunk = 0; chunk < 32; chunk += 16) {
      size_t offset = start + static_cast<size_t>(row) * 128 + chunk;
      offset ^= (offset >> 7 & 7) << 4;
      std::memcpy(b[row] + chunk, SharedMemory() + offset, 16);
    }
  }
}

// d + the products of 32 bytes of each, or the products alone.
struct AddS8 {
  using D = int;
  static int Add(int d, const int8_t* a, const int8_t* b) {
    int sum = 0;
    for (int k = 0; k < 32; ++k) sum += a[k] * b[k];
    return static_cast<int>(static_cast<uint32_t>(d) + static_cast<uint32_t>(sum));
  }
};
struct AddBf16 {
  using D = float;
  static float Add(float d, const int8_t* a, const int8_t* b) {
    double sum = d;
    for (int k = 0; k < 32; k += 2) sum += Get(a + k) * Get(b + k);
    return static_cast<float>(sum);
  }
  static double Get(const int8_t* bytes) {
    uint16_t bits;
    std::memcpy(&bits, bytes, sizeof(bits));
    return static_cast<double>(nibble::ToFloat(nibble::BFloat16{bits}));
  }
};

// One warp's 16 rows. sums[lane] holds the n / 2 registers of D of a lane.
template <typename Element>
void MultiplyAs(const Instruction& instruction, const uint32_t* const (&a_registers)[32],
                const Registers (&sums)[32]) {
  using D = typename Element::D;
  static_assert(sizeof(D) == kRegisterBytes);
  int8_t a[16][32];
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      std::memcpy(&a[lane / 4 + i % 2 * 8][lane % 4 * 4 + i / 2 * 16], &a_registers[lane][i], 4);
    }
  }
  int8_t b[256][32];
  GatherB(instruction, b);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < instruction.n / 2; ++i) {
      const int8_t* const a_row = a[lane / 4 + i / 2 % 2 * 8];
      const int8_t* const b_row = b[i / 4 * 8 + lane % 4 * 2 + i % 2];
      const Registers at = sums[lane] + static_cast<size_t>(i) * kRegisterBytes;
      D d = 0;
      if (instruction.accumulate) std::memcpy(&d, at, sizeof(d));
      d = Element::Add(d, a_row, b_row);
      std::memcpy(at, &d, sizeof(d));
    }
  }
}
void Multiply(const Instruction& instruction, const uint32_t* const (&a_registers)[32],
              const Registers (&sums)[32]) {
  if (instruction.is_bf16) {
    MultiplyAs<AddBf16>(instruction, a_registers, sums);
  } else {
    MultiplyAs<AddS8>(instruction, a_registers, sums);
  }
}

// At the instruction, all four warps; `all` are Instructions.
void PerformIssue(void* const* all) {
  const auto& first = *static_cast<Instruction*>(all[0]);
  for (int i = 1; i < 128; ++i) {
    const auto& other = *static_cast<Instruction*>(all[i]);
    if (other.n != first.n || other.descriptor != first.descriptor ||
        other.accumulate != first.accumulate) {
      Fail("wgmma: the threads of a warpgroup do not agree about N, B or `accumulate`");
    }
  }
  if (!Mode().eager_copies) return;
  for (int warp = 0; warp < 4; ++warp) {
    const uint32_t* a[32];
    Registers sums[32];
    for (int lane = 0; lane < 32; ++lane) {
      a[lane] = static_cast<Instruction*>(all[warp * 32 + lane])->a;
      sums[lane] = static_cast<Instruction*>(all[warp * 32 + lane])->d;
    }
    Multiply(first, a, sums);
  }
}

Accumulator& Find(Queue* queue, const unsigned char* d) {
  return *std::find_if(queue->accumulators.begin(), queue->accumulators.end(),
                       [d](const Accumulator& accumulator) { return accumulator.d == d; });
}

void HideAccumulator(Queue* queue, const Instruction& instruction) {
  const size_t size = static_cast<size_t>(instruction.n) / 2 * kRegisterBytes;
  for (Accumulator& accumulator : queue->accumulators) {
    if (accumulator.d == instruction.d && accumulator.values.size() == size) {
      ++accumulator.num_under_way;
      return;
    }
    if (accumulator.d < instruction.d + size &&
        instruction.d < accumulator.d + accumulator.values.size()) {
      Fail("wgmma: D overlaps with another D under way");
    }
  }
  queue->accumulators.push_back(
      {instruction.d, std::vector<unsigned char>(instruction.d, instruction.d + size), 1});
  for (size_t i = 0; i < size; i += kRegisterBytes) {
    std::memcpy(instruction.d + i, &kPoison, kRegisterBytes);
  }
}

// The oldest group of the warp's threads; `all` are Queues.
void PerformOldestGroup(void* const* all) {
  const size_t num_instructions = static_cast<Queue*>(all[0])->groups.front().size();
  for (size_t i = 0; i < num_instructions; ++i) {
    const uint32_t* a[32];
    Registers sums[32];
    for (int lane = 0; lane < 32; ++lane) {
      auto* const queue = static_cast<Queue*>(all[lane]);
      const Instruction& instruction = queue->groups.front()[i];
      a[lane] = instruction.a;
      sums[lane] = Find(queue, instruction.d).values.data();
    }
    Multiply(static_cast<Queue*>(all[0])->groups.front()[i], a, sums);
    for (int lane = 0; lane < 32; ++lane) {
      auto* const queue = static_cast<Queue*>(all[lane]);
      Accumulator& accumulator = Find(queue, queue->groups.front()[i].d);
      if (--accumulator.num_under_way > 0) continue;
      std::copy(accumulator.values.begin(), accumulator.values.end(), accumulator.d);
      queue->accumulators.erase(queue->accumulators.begin() +
                                (&accumulator - queue->accumulators.data()));
    }
  }
}

struct WaitArgs {
  Queue* queue;
  size_t num_pending;
};

void PerformWait(void* const* all, unsigned) {
  void* queues[32];
  const size_t num_groups = static_cast<WaitArgs*>(all[0])->queue->groups.size();
  for (int lane = 0; lane < 32; ++lane) {
    queues[lane] = static_cast<WaitArgs*>(all[lane])->queue;
    if (static_cast<Queue*>(queues[lane])->groups.size() != num_groups) {
      Fail("WgmmaWait: lanes of a warp have different numbers of groups under way");
    }
  }
  const size_t num_pending = static_cast<WaitArgs*>(all[0])->num_pending;
  for (size_t done = num_pending; done < num_groups; ++done) {
    if (!Mode().eager_copies) PerformOldestGroup(queues);
    for (void* queue : queues) static_cast<Queue*>(queue)->groups.pop_front();
  }
}

void Issue(Instruction instruction) {
  Queue& queue = OfThread();
  const char* const what = instruction.is_bf16 ? "WgmmaBf16" : "WgmmaS8";
  const auto fail = [what](const char* why) { Fail(std::string(what) + why); };
  if (!queue.fenced) fail(" without WgmmaFence() in its group");
  const size_t start = (instruction.descriptor & kAddressMask) << 4;
  if ((instruction.descriptor & ~kAddressMask) != kDescriptorFields || start % 32 != 0 ||
      start % 1024 >= 128) {
    fail(": a descriptor that SwizzledDescriptor128() does not make");
  }
  if (start / 1024 * 1024 + static_cast<size_t>(instruction.n) * 128 > SharedBytes()) {
    fail(": B reaches beyond the block's shared memory");
  }
  WarpgroupMeeting(what, &instruction, PerformIssue);
  if (!Mode().eager_copies) HideAccumulator(&queue, instruction);
  queue.open.push_back(instruction);
}

}  // namespace

uint64_t WgmmaDescriptor(const void* shared) {
  CheckShared(shared, 1, "SwizzledDescriptor128");
  const auto offset = static_cast<uint64_t>(static_cast<const uint8_t*>(shared) - SharedMemory());
  if (offset % 1024 % 32 != 0 || offset % 1024 >= 128) {
    Fail("SwizzledDescriptor128: " + std::to_string(offset % 1024) +
         " bytes into an atom; 0, 32, 64 and 96 are defined");
  }
  return kDescriptorFields | offset >> 4;
}

void WgmmaFence() {
  OfThread().fenced = true;
  WarpMeeting(0xFFFFFFFFU, "WgmmaFence", nullptr, [](void* const*, unsigned) {});
}

void WgmmaS8(int n, int* d, const uint32_t* a, uint64_t b_descriptor, bool accumulate) {
  Issue({n, /*is_bf16=*/false, reinterpret_cast<Registers>(d), a, b_descriptor, accumulate});
}

void WgmmaBf16(int n, float* d, const uint32_t* a, uint64_t b_descriptor, bool accumulate) {
  Issue({n, /*is_bf16=*/true, reinterpret_cast<Registers>(d), a, b_descriptor, accumulate});
}

void WgmmaCommit() {
  Queue& queue = OfThread();
  queue.groups.push_back(std::move(queue.open));
  queue.open.clear();
  queue.fenced = false;
}

void WgmmaWait(int num_pending) {
  Queue& queue = OfThread();
  if (!queue.open.empty()) Fail("WgmmaWait with instructions that were not committed");
  WaitArgs args{&queue, static_cast<size_t>(num_pending)};
  WarpMeeting(0xFFFFFFFFU, "WgmmaWait", &args, PerformWait);
}

}  // namespace simt
