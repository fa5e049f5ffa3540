// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// wgmma. Called by the wrapper of include/; the contract is in kernels/device/wgmma.cuh.
//
// Eager launches compute at once. In lazy ones the registers of D hold rubbish from the instruction
// to the wait for its group, when A's registers and B's memory are read.
#pragma once

#include <cstdint>

namespace simt {

// Bits as the hardware's, the address counted from the start of the block's shared memory.
uint64_t WgmmaDescriptor(const void* shared);
void WgmmaFence();
void WgmmaS8(int n, int* d, const uint32_t* a, uint64_t b_descriptor, bool accumulate);
void WgmmaBf16(int n, float* d, const uint32_t* a, uint64_t b_descriptor, bool accumulate);
void WgmmaCommit();
void WgmmaWait(int num_pending);

}  // namespace simt
