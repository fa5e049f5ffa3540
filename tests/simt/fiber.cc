// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/fiber.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr size_t kStackBytes = 256 * 1024;
// The tops of all stacks would fall into the same sets of the caches: each begins elsewhere.
constexpr size_t kCacheLine = 64;
constexpr size_t kNumColors = 64;
constexpr size_t kColorStep = 5;  // lines; about what a thread that stops touches

// Registers that a call preserves go onto the stack, whose pointer goes to *from; then the same
// from the stack `to`, backwards. Not by `ret`, whose target the processor would guess wrong each
// time. The floating-point modes are the same for all.
__attribute__((naked, noinline)) void Switch(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n"
      "pushq %rbx\n"
      "pushq %r12\n"
      "pushq %r13\n"
      "pushq %r14\n"
      "pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n"
      "popq %r14\n"
      "popq %r13\n"
      "popq %r12\n"
      "popq %rbx\n"
      "popq %rbp\n"
      "popq %rcx\n"
      "jmpq *%rcx\n");
}

constinit thread_local Fiber* g_resumed = nullptr;

}  // namespace

Fiber::Fiber(void (*function)(void*), void* arg) : function_(function), arg_(arg) {
  memory_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory_ == MAP_FAILED || mprotect(memory_, kGuardBytes, PROT_NONE) != 0) {
    std::perror("simt: the stack of a thread");
    std::abort();
  }
  static std::atomic<size_t> num_made{0};
  const size_t color = num_made.fetch_add(1) * kColorStep % kNumColors * kCacheLine;
  top_ = static_cast<char*>(memory_) + kGuardBytes + kStackBytes - color;
  // As if Run() had been called from nowhere, and had left before its first instruction.
  constexpr int kNumRegisters = 6;
  auto** const stack = reinterpret_cast<void**>(top_) - kNumRegisters - 2;
  for (int i = 0; i < kNumRegisters; ++i) stack[i] = nullptr;
  stack[kNumRegisters] = reinterpret_cast<void*>(&Run);
  stack[kNumRegisters + 1] = nullptr;  // return address; here the stack is 8 short of 16
  inside_ = stack;
}

Fiber::~Fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(static_cast<char*>(memory_) + kGuardBytes, kStackBytes);
#endif
  munmap(memory_, kGuardBytes + kStackBytes);
}

void Fiber::Run() {
  Fiber* const fiber = g_resumed;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &fiber->host_stack_, &fiber->host_stack_bytes_);
#endif
  while (true) {
    fiber->function_(fiber->arg_);
    fiber->Leave();
  }
}

void Fiber::Resume() {
  g_resumed = this;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const char* const bottom = static_cast<char*>(memory_) + kGuardBytes;
  __sanitizer_start_switch_fiber(&fake_stack, bottom, static_cast<size_t>(top_ - bottom));
#endif
  Switch(&outside_, inside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::Leave() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, host_stack_, host_stack_bytes_);
#endif
  Switch(&inside_, outside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &host_stack_, &host_stack_bytes_);
#endif
}

}  // namespace simt
