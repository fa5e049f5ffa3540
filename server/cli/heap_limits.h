// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How much freed memory a server's heap keeps.
#pragma once

namespace nibble::cli {

// Before threads are started. glibc maps large pieces of memory and gives them back when they are
// freed, but takes every such free as a hint that pieces up to that size (32 MiB) are better kept:
// after a few large request bodies each thread's heap holds on to tens of MiB for ever. With limits
// that are set they stay what they are: pieces of 1 MiB and more are mapped, and a heap keeps 2 MiB
// at its end.
void LimitHeap();

}  // namespace nibble::cli
