// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as what ranks tell each other when a group is formed: an all-reduce policy and an
// address. An error, or something that is written as it was read.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "comm/all_reduce.h"
#include "comm/group_address.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble::comm;  // NOLINT(google-build-using-namespace)
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto policy = ParsePolicy(bytes);
  if (policy.ok()) {
    const auto again = ParsePolicy(Serialize(*policy));
    if (!again.ok() || again->choices != policy->choices) std::abort();
    for (const int64_t message :
         {int64_t{0}, int64_t{1} << 20, std::numeric_limits<int64_t>::max()}) {
      if (policy->For(message).max_bytes < message) std::abort();
    }
    if (ToString(*policy).empty()) std::abort();
  }
  const auto address = ParseGroupAddress(bytes);
  if (address.ok() && Serialize(*address) != bytes) std::abort();
  (void)ParseAllReduce(bytes);
  for (const size_t count : {1, 2, 3}) {
    const auto addresses = SplitAddresses(bytes, count);
    if (addresses.ok() && JoinAddresses(*addresses) != bytes) std::abort();
  }
  return 0;
}
