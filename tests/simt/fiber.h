// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A stack of its own for a function that can stop in the middle: what a CUDA thread runs on.
#pragma once

#include <cstddef>

namespace simt {

// Runs `function(arg)` once for every time that it is begun: stacks outlive the threads that run on
// them. Stays on the host thread that made it. Destroyed, it drops what is under way.
class Fiber {
 public:
  Fiber(void (*function)(void*), void* arg);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From outside: runs until Leave() or the function's end, where the next Resume() begins anew.
  void Resume();
  // From inside.
  void Leave();

 private:
  [[noreturn]] static void Run();

  void (*const function_)(void*);
  void* const arg_;
  void* memory_;   // a page that nobody may touch, then the stack
  char* top_;      // of the stack
  void* inside_;   // its stack pointer while it is left
  void* outside_;  // the resumer's while it runs
  // What AddressSanitizer wants to know about whoever resumes.
  const void* host_stack_ = nullptr;
  size_t host_stack_bytes_ = 0;
};

}  // namespace simt
