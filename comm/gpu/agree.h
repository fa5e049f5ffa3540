// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What ranks find out one by one and have to decide together: whether a transport works.
#pragma once

#include "base/status.h"
#include "comm/communicator.h"

namespace nibble::comm {

// OK on all ranks when every rank brings OK; else the error of the first rank that has one, which
// is named. An error of the exchange itself is returned as it is. Every rank calls.
absl::Status Agree(Communicator* host, const absl::Status& mine);

}  // namespace nibble::comm
