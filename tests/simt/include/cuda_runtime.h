// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The part of the CUDA runtime that nibble uses, on the CPU (simt.h). It shadows the toolkit's
// header of the same name when kernels are compiled for tests, which then need no toolkit.
#pragma once

#include "tests/simt/runtime.h"
#include "tests/simt/vocabulary.h"
