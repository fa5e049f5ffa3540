// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/timing.h"

#include <algorithm>

#include "base/check.h"

namespace nibble::bench {

Timing Summarize(std::vector<double> seconds) {
  NIBBLE_CHECK(!seconds.empty());
  std::sort(seconds.begin(), seconds.end());
  const size_t middle = seconds.size() / 2;
  const double median =
      seconds.size() % 2 == 1 ? seconds[middle] : 0.5 * (seconds[middle - 1] + seconds[middle]);
  return {median, seconds[0], static_cast<int64_t>(seconds.size())};
}

}  // namespace nibble::bench
