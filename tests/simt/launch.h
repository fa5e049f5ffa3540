// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Launches of the emulator's own tests.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "gtest/gtest.h"

namespace simt {

struct Shape {
  unsigned blocks = 1;
  unsigned threads = 32;
  size_t shared_bytes = 0;
};

// At once, on no stream.
template <typename... Parameters, typename... Args>
void Launch(void (*kernel)(Parameters...), const Shape& shape, Args... args) {
  cudaLaunchConfig_t config{.gridDim = {shape.blocks},
                            .blockDim = {shape.threads},
                            .dynamicSmemBytes = shape.shared_bytes};
  ASSERT_EQ(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), cudaSuccess);
}

// The same schedule for all launches until the end of the scope.
class Scheduled {
 public:
  Scheduled(Order order, bool eager_copies) {
    ForceSchedule({.order = order, .eager_copies = eager_copies});
  }
  ~Scheduled() { UnforceSchedule(); }
};

inline constexpr Order kOrders[] = {Order::kRising, Order::kFalling, Order::kShuffled};

}  // namespace simt
