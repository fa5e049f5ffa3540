// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "gtest/gtest.h"

#include "kernels/gemm/cuda/packing.h"
