// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Runs AMX code on CPUs without AMX: they raise SIGILL at each of its instructions, and the handler
// does what the instruction says on a TileModel of the thread, then goes on behind it. So the tests
// execute the very machine code that a CPU with AMX gets.
#pragma once

#include <cstdint>

namespace nibble::kernels::amx {

// True when AMX instructions may be executed: the CPU has them, or it has the rest of what
// Isa::kAmx needs and the emulator is installed now (once per process; for all threads). An
// instruction that would raise an exception on the tile unit ends the process with the reason.
bool InstallAmxEmulator();

// True when the emulator executes them, so that the following mean something.
bool AmxIsEmulated();
// Products of tiles (TDP*) so far, of all threads.
int64_t NumEmulatedProducts();
// From now on the content of a tile is gone when it is stored, as where a hypervisor does not keep
// it.
void LoseTilesBeforeStores(bool lose);

}  // namespace nibble::kernels::amx
