// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda_codec_bench.h"
#include "bench/limits.h"

namespace nibble::bench {

void CudaCodecBenchOptions::Validate(std::vector<std::string>* violations) const {
  codecs.Validate(violations);
  CheckNumber("--seconds", meter.seconds, 0.0, 10.0, violations);
}

}  // namespace nibble::bench
