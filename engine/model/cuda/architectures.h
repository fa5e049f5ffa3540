// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which devices a build's kernels run on.
#pragma once

#include <string_view>

namespace nibble::engine {

// Whether code for `architectures`, as CMAKE_CUDA_ARCHITECTURES has them, separated by commas
// ("80-real,90a-real"), runs on a device of compute capability `sm` / 10. Also true for what it
// does not know ("native"): the device is asked before a model is loaded.
bool HasKernelsFor(std::string_view architectures, int sm);

}  // namespace nibble::engine
