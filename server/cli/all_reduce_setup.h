// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From --all-reduce and its companions to what comm/ takes.
#pragma once

#include "base/status.h"
#include "comm/all_reduce.h"
#include "server/config.h"

namespace nibble::cli {

// INVALID_ARGUMENT for what AllReduceFlags::Validate refuses.
absl::StatusOr<comm::AllReduceOptions> ToAllReduceOptions(const server::AllReduceFlags& flags);

}  // namespace nibble::cli
