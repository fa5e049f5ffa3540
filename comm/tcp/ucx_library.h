// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What UCX does to a whole process, and what of it is undone. Its constructors run before main in
// every program that links it: they catch SIGSEGV and its like, and SIGHUP, which they only log.
// The handlers are given back before main too (ucx_library.cc).
#pragma once

namespace nibble::comm {

// The first call sends UCX's log into ours, keeps its modules for other networks (and their
// libraries) unloaded, and names the UCX_ variables of the environment in the log. Thread-safe.
void PrepareUcxLibrary();

}  // namespace nibble::comm
