// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Barriers in shared memory and the copies that complete them: mbarrier, cp.async.bulk and its
// tensor form. Called by the wrappers of include/; the contracts are in base/cuda/barrier.cuh.
//
// Eager launches copy at once. Lazy ones copy, from the source as it is then, when a thread waits
// for the barrier and nothing but bytes is missing of its phase; the copies of a phase in the
// reverse order of their starts.
#pragma once

#include <cstdint>

namespace simt {

void BarrierInit(uint64_t* barrier, uint32_t count);
void BarrierArrive(uint64_t* barrier, uint32_t expected_bytes);
void BarrierWait(uint64_t* barrier, uint32_t parity);
void BulkCopy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);
// `map`: a gpu::TensorMap that MakeTensorMap2d() made in the emulator.
void TensorCopy2d(void* shared, const void* map, int x, int y, uint64_t* barrier);

}  // namespace simt
