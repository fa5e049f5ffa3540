// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/agree.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace nibble::comm {
namespace {

struct Verdict {
  int32_t code = 0;
  char message[508] = {};  // ends with a zero unless a peer wrote something else
};

}  // namespace

absl::Status Agree(Communicator* host, const absl::Status& mine) {
  Verdict own;
  own.code = static_cast<int32_t>(mine.code());
  const std::string text(mine.message());
  std::copy_n(text.data(), std::min(text.size(), sizeof(own.message) - 1), own.message);
  std::vector<Verdict> all(static_cast<size_t>(host->size()));
  NIBBLE_RETURN_IF_ERROR(host->AllGather(&own, sizeof(own), all.data()));
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].code == 0) continue;
    const std::string message(all[r].message, strnlen(all[r].message, sizeof(all[r].message)));
    return Annotate(absl::Status(static_cast<absl::StatusCode>(all[r].code), message),
                    fmt::format("rank {}", r));
  }
  return absl::OkStatus();
}

}  // namespace nibble::comm
